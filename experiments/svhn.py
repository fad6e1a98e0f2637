"""SVHN (paper section 4.4, table 3): 2.35 % with dropout.

    svhn.py           the release with experiments/cifar10.py's two changes that make it start.
    svhn.py:release   the authors' files (NIN/svhn_def, svhn_params). Their schedule was never published: 30 epochs with
                      drops at 20 and 25 are our choice, 1.4 times as many updates as CIFAR-10's 260.
    svhn.py:tune      evaluates on the paper's 6,000 validation images, which are never trained on, in place of the test.

plateau is that of experiments/cifar10.py with a patience of 2 epochs; joined in the same way: svhn.py:release,tune.

Preprocessing is pylearn2's of 2013: contrast normalisation with sqrt(mean(x^2) + 10), then local contrast
normalisation of all three channels.
"""

from nin_jax.config import experiment, words

ARGUMENTS = (
    *("release", "plateau", "tune", "plateau,tune"),
    *("release,plateau", "release,tune", "release,plateau,tune"),
)


def get_config(arg=None):
    chosen = words(arg, ARGUMENTS)
    config = experiment("cifar10", arg)
    config.dataset = "svhn"
    config.train_split = "paper_train"
    config.eval_split = "paper_validation" if "tune" in chosen else "test"
    config.preprocess = ("gcn(scale=1, sqrt_bias=10, use_std=True)", "lcn()")
    config.model.kernels = (5, 5, 5)
    config.model.widths = ((128, 96, 64), (320, 256, 128), (384, 256))
    config.epochs = 30
    if "plateau" in chosen:
        config.schedule.plateau_epochs = 2
    else:
        config.schedule.boundaries_epochs = (20, 25)
    return config
