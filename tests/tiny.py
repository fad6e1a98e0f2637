"""The config of a run of seconds."""

from typing import Any

from nin_jax import config

TINY = {
    "dataset": "synthetic",
    "train_split": "train[:320]",
    "eval_split": "test[:72]",
    "preprocess": ("gcn(scale=10)", "zca(eps=0.1)"),
    "augment": ("crop(pad=1)", "flip()"),
    "batch_size": 32,
    "epochs": 3,
    "keep": 3,
    "model.name": "nin",
    "model.kernels": (3, 3),
    "model.widths": ((8, 8), (8,)),
    "model.pools": ("max",),
    "model.deviations": ("he",),
    "model.dropout": 0.2,
    "optimizer.learning_rate": 0.05,
    "schedule.boundaries_epochs": (2,),
}


def tiny(**changes: Any) -> config.Config:
    """A config that trains in a second or two, with every random part on."""
    c = config.default()
    with c.unlocked(), c.ignore_type():
        c.update_from_flattened_dict(TINY | changes)
    return config.check(c)
