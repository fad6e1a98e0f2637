"""Translation and horizontal flips (paper section 4.2, table 1): 8.81 % with both, 10.41 % with neither.

The authors' provider pads the whitened image with 4 zeros a side and cuts 32x32 at random; the test sees the image as
it is. Schedule, weight decay and length of their run are not published: those of CIFAR-10 here.
"""

from nin_jax.config import experiment
from nin_jax.paper import ablation

ROWS = {
    "none": {},
    "flip": {"augment": ("flip()",)},
    "crop": {"augment": ("crop(pad=4)",)},
    "crop_flip": {"augment": ("crop(pad=4)", "flip()")},
}
ARGUMENTS = tuple(ROWS)


def get_config(arg=None):
    return ablation.row(experiment("cifar10"), ROWS, arg)


def sweep(seeds=range(5)):
    return ablation.sweep("augmentation", ROWS, seeds)
