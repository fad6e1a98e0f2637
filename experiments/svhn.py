"""SVHN (paper section 4.4, table 3): 2.35 % with dropout.

    svhn.py           the release with experiments/cifar10.py's two changes that make it start.
    svhn.py:release   the authors' files (NIN/svhn_def, svhn_params). Their schedule was never published: 30 epochs with
                      drops at 20 and 25 are our choice, about as many updates as CIFAR-10's 260.

Preprocessing is pylearn2's of 2013: contrast normalisation with sqrt(mean(x^2) + 10), then local contrast
normalisation of all three channels.
"""

from nin_jax.config import experiment


def get_config(arg=None):
    config = experiment("cifar10", arg)
    config.dataset = "svhn"
    config.train_split = "train+extra"
    config.preprocess = ("gcn(scale=1, sqrt_bias=10, use_std=True)", "lcn()")
    config.model.kernels = (5, 5, 5)
    config.model.widths = ((128, 96, 64), (320, 256, 128), (384, 256))
    config.epochs = 30
    config.schedule.boundaries_epochs = (20, 25)
    return config
