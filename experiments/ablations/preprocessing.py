"""Preprocessing of CIFAR-10 (paper section 4.2: "the same global contrast normalization and ZCA whitening" as maxout).

    gcn_zca   the paper's
    gcn       contrast normalisation alone
    mean      each pixel minus its mean over the training images, divided by its channel's deviation
    none      pixels from 0 to 1

The scale differs too: gcn and mean have a variance of about 1, gcn_zca about 0.27, none less. Not in the paper.
"""

from nin_jax.config import experiment
from nin_jax.paper import ablation

ROWS = {
    "gcn_zca": {},
    "gcn": {"preprocess": ("gcn(scale=55)",)},
    "mean": {"preprocess": ("mean(per='pixel')", "scale()")},
    "none": {"preprocess": ("scale(divisor=255)",)},
}
ARGUMENTS = tuple(ROWS)


def get_config(arg=None):
    return ablation.row(experiment("cifar10"), ROWS, arg)


def sweep(seeds=range(5)):
    return ablation.sweep("preprocessing", ROWS, seeds)
