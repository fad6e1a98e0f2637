"""The conventional network with and without global average pooling (paper section 4.6), on CIFAR-10.

    convnet.py              global average pooling, 16.46 %; convnet.py:gap is the same.
    convnet.py:fc           a fully connected layer instead, 17.56 %.
    convnet.py:fc_dropout   dropout of 0.5 and a fully connected layer, 15.99 %.
    convnet.py:hinton       the network that these imitate, 16 maps in the unshared layer instead of 10: Hinton et al. 2012,
                            arXiv 1207.0580, 15.6 %.

From Hinton et al.: the layers, response normalisation over 9 maps (alpha 0.001, beta 0.75), batch 128, momentum 0.9, one
rate for all layers that drops tenfold twice before the end; alpha is divided by the number of maps, as in
cuda-convnet. From the paper: 10 maps and the heads.

Neither says the rest, which is ours. Of the first three: the images, schedule and weight decay of
experiments/cifar10.py, weights from N(0, 2 / fan-in), and 0.01, the larger of the rates that Hinton et al. name. Of
"hinton": no weight decay, and the numbers of the example networks that came with cuda-convnet, which such images
(0 to 255, less the mean of each pixel) want: initial weights and schedule of conv-local-11pct and 13pct, rate 0.001.
"""

from nin_jax.config import default, words

ARGUMENTS = ("gap", "fc", "fc_dropout", "hinton")


def get_config(arg=None):
    words(arg, ARGUMENTS)
    config = default()
    config.dataset = "cifar10"
    config.preprocess = ("gcn(scale=55)", "zca(eps=0.1)")

    # conv1, conv2, conv3 5x5x64, each with a 3x3 pool of stride 2, the first two normalised; local 3x3, one map a class.
    config.model.name = "convnet"
    config.model.widths = (64, 64, 64)
    config.model.pools = ("max", "avg", "avg")
    config.model.local_maps = 10
    config.model.head = "gap"
    config.model.deviations = ("he",)

    config.batch_size = 128
    config.epochs = 260
    config.optimizer.learning_rate = 0.01
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 1e-4
    config.schedule.boundaries_epochs = (200, 230)
    config.schedule.factor = 0.1

    if arg in ("fc", "fc_dropout"):
        config.model.head = arg
    elif arg == "hinton":
        config.preprocess = ("mean(per='pixel')",)
        config.model.local_maps = 16
        config.model.head = "fc_dropout"
        config.model.deviations = (0.0001, 0.01, 0.01, 0.04, 0.01)  # conv1, conv2, conv3, local, fc
        config.epochs = 160
        config.optimizer.learning_rate = 0.001
        config.optimizer.weight_decay = 0.0
        config.schedule.boundaries_epochs = (140, 150)
    return config
