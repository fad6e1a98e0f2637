"""Stochastic pooling (Zeiler and Fergus 2013, arXiv 1301.3557), a rival in tables 1 to 4.

    stochastic_pooling.py            CIFAR-10, 15.13 %.
    stochastic_pooling.py:cifar100   CIFAR-100, 42.51 %.
    stochastic_pooling.py:svhn       SVHN, 2.80 %: 128 maps in the third layer, 500 epochs, all training images.
    stochastic_pooling.py:mnist      MNIST, 0.47 %.

From their paper: the layers, momentum 0.9, rates of 0.01 for the convolutions and 1 for the softmax layer that fall
linearly to a hundredth, weight decay of 0.001, 280 epochs, the mean of each pixel subtracted (MNIST: images in [0, 1];
SVHN: local contrast normalisation).

It does not say the rest, which is ours: batches of 128, images in [0, 1] before the mean is subtracted, response
normalisation as in Hinton et al. 2012 (9 maps, alpha 0.001, here divided by 9 as in cuda-convnet, beta 0.75), no contrast
normalisation of the whole image before SVHN's local one, and initial weights from N(0, 0.02^2), as a rate of 1 for the
softmax layer wants small maps.
"""

from nin_jax.config import default, words

ARGUMENTS = ("cifar10", "cifar100", "svhn", "mnist")


def get_config(arg=None):
    words(arg, ARGUMENTS)
    config = default()
    config.dataset = "cifar10"
    config.preprocess = ("scale(divisor=255)", "mean(per='pixel')")

    # conv1, conv2, conv3 5x5x64, each with a stochastic 3x3 pool of stride 2 and response normalisation; softmax.
    config.model.name = "stochastic_pooling"
    config.model.widths = (64, 64, 64)
    config.model.deviations = (0.02,)

    config.batch_size = 128
    config.epochs = 280
    config.optimizer.learning_rate = 0.01
    config.optimizer.learning_rate_factors = ("fc/=100",)
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 0.001
    config.schedule.decay = "linear"
    config.schedule.final_factor = 0.01

    if arg == "cifar100":
        config.dataset = "cifar100"
    elif arg == "svhn":
        config.dataset = "svhn"
        config.train_split = "train+extra"
        config.preprocess = ("lcn()",)
        config.model.widths = (64, 64, 128)
        config.epochs = 500
    elif arg == "mnist":
        config.dataset = "mnist"
        config.preprocess = ("scale(divisor=255)",)
    return config
