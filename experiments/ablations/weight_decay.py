"""Weight decay, on the validation images: the other hyper-parameter that the paper tunes (section 4.2).

What was tried is not published; 1e-4 is the release's (wc / coeff = 1e-5 / 0.1), 5e-4 that of its CIFAR-100 files.
"""

from nin_jax.config import experiment
from nin_jax.paper import ablation

ROWS = {
    "0": {"optimizer.weight_decay": 0.0},
    "1e-5": {"optimizer.weight_decay": 1e-5},
    "1e-4": {},
    "5e-4": {"optimizer.weight_decay": 5e-4},
    "1e-3": {"optimizer.weight_decay": 1e-3},
}
ARGUMENTS = tuple(ROWS)


def get_config(arg=None):
    return ablation.row(experiment("cifar10", "tune"), ROWS, arg)


def sweep(seeds=range(5)):
    return ablation.sweep("weight_decay", ROWS, seeds)
