"""The convolutional maxout network (Goodfellow et al. 2013), NIN's strongest rival in tables 1 to 4.

    maxout.py                     CIFAR-10, 11.68 %: pylearn2's cifar10_no_aug.yaml.
    maxout.py:cifar10_augmented   CIFAR-10 with translations and flips, 9.38 %: cifar10.yaml. They pad by 4 as pylearn2
                                  does since 2015; the file of 2013 says 8.
    maxout.py:cifar100            CIFAR-100, 38.57 %: the settings of CIFAR-10, as their paper says; the file was never
                                  published, and the number of epochs is ours.
    maxout.py:svhn                SVHN, 2.47 %: svhn.yaml, then svhn2.yaml from epoch 142 on (rate 0.0086, which is a tenth
                                  of what it is then; not its momentum of 0.9).
    maxout.py:mnist               MNIST, 0.45 %: mnist.yaml. The number of epochs is ours.

pylearn2 stopped when 100 epochs had brought nothing on held-out images, then trained on all images for as many epochs
more (MNIST: until the likelihood was that of before). A config has neither; here the epochs are fixed, to those that the
authors' runs had where they are known.
"""

import math

from nin_jax.config import default, words

ARGUMENTS = ("cifar10", "cifar10_augmented", "cifar100", "svhn", "mnist")


def get_config(arg=None):
    words(arg, ARGUMENTS)
    config = default()
    config.dataset = "cifar10"
    config.preprocess = ("gcn(scale=55)", "zca(eps=0.1)")

    # h0, h1, h2: convolution, maximum over the pieces, max pool; h3: the same, dense, without a pool; y: softmax.
    config.model.name = "maxout"
    config.model.widths = (96, 192, 192)
    config.model.pieces = (2, 2, 2)
    config.model.kernels = (8, 8, 5)
    config.model.pads = (4, 3, 3)
    config.model.pools = (4, 4, 2)
    config.model.dense_width = 500
    config.model.dense_pieces = 5
    config.model.limit = 0.005
    config.model.input_dropout = 0.2
    config.model.dropout = 0.5

    config.batch_size = 128
    config.epochs = 785
    config.optimizer.learning_rate = 0.17
    config.optimizer.learning_rate_factors = ("h[012]/=0.05",)
    config.optimizer.momentum = 0.5
    config.optimizer.momentum_final = 0.6
    config.optimizer.momentum_epochs = 250.0
    config.optimizer.weight_decay = 0.0
    config.optimizer.max_norms = ("h0/kernel=0.9", "h[12]/kernel=1.9365", "h3/kernel=1.9", "y/kernel=1.9365")
    config.schedule.decay = "linear"
    config.schedule.final_factor = 0.01
    config.schedule.final_epochs = 500.0

    if arg == "cifar10_augmented":
        config.augment = ("crop(pad=4)", "flip()")
        config.epochs = 474
        config.optimizer.momentum_final = 0.65
    elif arg == "cifar100":
        config.dataset = "cifar100"
    elif arg == "svhn":
        config.dataset = "svhn"
        config.train_split = "paper_train"  # pylearn2's splitted_train
        config.preprocess = ("gcn(scale=1, sqrt_bias=10, use_std=True)", "lcn()")
        config.model.widths = (64, 128, 128)
        config.model.kernels = (5, 5, 5)
        config.model.pools = (3, 3, 3)
        config.model.dense_width = 400
        config.epochs = 151
        config.optimizer.learning_rate = 0.2
        config.schedule.final_factor = 0.001
        config.schedule.final_epochs = 250.0
        config.schedule.boundaries_epochs = (142,)
        config.schedule.factor = 0.1
    elif arg == "mnist":
        config.dataset = "mnist"
        config.preprocess = ("scale(divisor=255)",)
        config.model.widths = (48, 48, 24)
        config.model.pieces = (2, 2, 4)
        config.model.pads = (0, 3, 3)
        config.model.dense_width = 0
        config.epochs = 250
        config.optimizer.learning_rate = 0.05
        config.optimizer.learning_rate_factors = ()
        config.optimizer.momentum_final = 0.7
        config.optimizer.max_norms = ("h0/kernel=0.9", "h[12]/kernel=1.9365", "y/kernel=1.9365")
        # Divided by 1.00004 after every update, 468 an epoch, until it is 1e-6.
        config.schedule.decay = "exponential"
        config.schedule.final_factor = 1e-6 / 0.05
        config.schedule.final_epochs = math.log(0.05 / 1e-6) / math.log(1.00004) / 468
    return config
