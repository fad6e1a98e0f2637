"""Side of the first mlpconv's kernel, on the validation images: "the local receptive field size" (paper section 4.2).

It is one of the two hyper-parameters that the paper tunes, so this is cifar10.py:tune. What was tried is not published.
"""

from nin_jax.config import experiment
from nin_jax.paper import ablation

ROWS = {
    "3x3": {"model.kernels": (3, 5, 3)},
    "5x5": {},
    "7x7": {"model.kernels": (7, 5, 3)},
}
ARGUMENTS = tuple(ROWS)


def get_config(arg=None):
    return ablation.row(experiment("cifar10", "tune"), ROWS, arg)


def sweep(seeds=range(5)):
    return ablation.sweep("receptive_field", ROWS, seeds)
