"""What the parts of the modern recipe, experiments/cifar10.py:fast, buy: all of it, and all but one.

    all                everything
    no_batch_norm      biases instead
    no_augmentation    the images as they are
    no_smoothing       labels as they are
    no_average         the weights themselves are evaluated
    steps              two drops of the rate, as the authors had them, after 23 and 26.5 epochs of 30, instead of the cosine
    classic            the paper's dropout, 0.5 not rescaled, instead of 0.2 inverted
    relu               ReLU on the class maps
    slow_last          the paper's rates by layer
    gcn_zca            the paper's preprocessing

Not in the paper.
"""

from nin_jax.config import experiment
from nin_jax.paper import ablation

ROWS = {
    "all": {},
    "no_batch_norm": {"model.batch_norm": False},
    "no_augmentation": {"augment": ()},
    "no_smoothing": {"task": "classify"},
    "no_average": {"optimizer.average": 0.0},
    "steps": {"schedule.decay": "none", "schedule.boundaries_epochs": (23.0, 26.5)},
    "classic": {"model.dropout": 0.5, "model.dropout_kind": "classic"},
    "relu": {"model.relu_on_class_maps": True},
    "slow_last": {"optimizer.learning_rate_factors": ("cccp6/kernel=0.1", "cccp6/bias=0.2", "bias=2")},
    "gcn_zca": {"preprocess": ("gcn(scale=55)", "zca(eps=0.1)")},
}
ARGUMENTS = tuple(ROWS)


def get_config(arg=None):
    return ablation.row(experiment("cifar10", "fast"), ROWS, arg)


def sweep(seeds=range(5)):
    return ablation.sweep("fast", ROWS, seeds)
