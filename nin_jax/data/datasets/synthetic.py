"""Synthetic images that a network can learn: for tests, and for timing networks without a data set.

Class k is a bright square at the k-th place of a noisy colour image. `synthetic` has ten classes and 16x16 pixels;
`synthetic(size=224, classes=1000)` has ImageNet's size but lies on the devices, so that a run's speed is that of the
computation alone.
"""

from __future__ import annotations

import math

import numpy as np

from nin_jax.data.splits import Info, Split, take
from nin_jax.errors import UserError


def info(data_dir: str | None = None, *, size: int = 16, classes: int = 10) -> Info:
    """The facts; pictures are size x size x 3."""
    del data_dir
    if not (1 <= size <= 512 and 2 <= classes <= 1024 and classes <= (size // 2) ** 2):
        raise UserError(
            f"dataset synthetic(size={size}, classes={classes}): 2 to 1024 classes, of 4 pixels each at least"
        )
    return Info(
        name="synthetic",
        classes=classes,
        image_shape=(size, size, 3),
        splits={"train": 1_024, "test": 256, "validation": 256},
        source="made by datasets/synthetic.py",
    )


INFO = info()


def load(
    split: str, data_dir: str | None = None, *, bad_records: str = "stop", size: int = 16, classes: int = 10
) -> Split:
    """uint8 `[N, size, size, 3]` and int32 `[N]`; the same pictures at every call."""
    del bad_records  # there are none
    facts = info(data_dir, size=size, classes=classes)
    return take(split, facts.splits, lambda name: _make(facts, name), facts.name)


def _make(facts: Info, name: str) -> Split:
    rng = np.random.default_rng(("test", "train", "validation").index(name))
    n, size = facts.splits[name], facts.image_shape[0]
    labels = (np.arange(n) % facts.classes).astype(np.int32)
    images = np.empty((n, *facts.image_shape), np.uint8)
    columns = math.ceil(math.sqrt(facts.classes))
    high, wide = size // math.ceil(facts.classes / columns), size // columns
    for image, label in zip(images, labels, strict=True):
        image[:] = rng.integers(0, 160, facts.image_shape)
        row, column = divmod(int(label), columns)
        image[row * high : (row + 1) * high, column * wide : (column + 1) * wide + 1] += 95
    return images, labels
