"""AlexNet on ImageNet, the baseline of the slides' table: 60,965,224 parameters, 40.7 % top-1 error.

Network and solver of Caffe's bvlc_alexnet: batch 256, rate 0.01, a tenth of it every 100,000 updates, 450,000 in all
(89.9 epochs); it reports 57.1 % top-1 of the centre (42.9 % error). 40.7 % is Krizhevsky et al. 2012, of ten views, as
here. Images are 256 x N here, and 256 x 256 there.
"""

from nin_jax.config import default

UPDATES = 1_281_167 // 256  # of an epoch


def get_config(arg=None):
    if arg is not None:
        raise ValueError(f"unknown argument {arg!r}: alexnet.py takes none")
    config = default()
    config.dataset = "imagenet"
    config.eval_split = "validation"
    config.preprocess = ("bgr()", "mean(per='pixel')")
    config.augment = ("flip()",)
    config.eval.views = "10-crop"

    config.model.name = "alexnet"
    config.model.head = "fc_dropout"
    config.model.batch_norm = False

    config.batch_size = 256
    config.epochs = 90
    config.optimizer.learning_rate = 0.01
    config.optimizer.learning_rate_factors = ("bias=2",)
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 5e-4
    config.schedule.boundaries_epochs = tuple(n * 100_000 / UPDATES for n in (1, 2, 3, 4))
    config.schedule.factor = 0.1
    return config
