"""Made-up pictures that a network can learn: for tests and for timing, where no data set may be needed.

Class k is a bright 5x5 square at the k-th of ten places of a 16x16 colour picture, under noise.
"""

from __future__ import annotations

import numpy as np

from nin_jax.pipeline.arrays import Info, Split, take

INFO = Info(
    name="synthetic",
    classes=10,
    image_shape=(16, 16, 3),
    splits={"train": 1_024, "test": 256},
    source="made by datasets/synthetic.py",
)


def load(split: str, data_dir: str | None = None) -> Split:
    """uint8 `[N, 16, 16, 3]` and int32 `[N]`; the same pictures at every call."""
    del data_dir
    return take(split, INFO.splits, _make, INFO.name)


def _make(name: str) -> Split:
    rng = np.random.default_rng(sorted(INFO.splits).index(name))
    n = INFO.splits[name]
    labels = (np.arange(n) % INFO.classes).astype(np.int32)
    images = rng.integers(0, 160, (n, *INFO.image_shape))
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 4)
        image[row * 5 : row * 5 + 5, column * 4 : column * 4 + 5] += 95
    return images.astype(np.uint8), labels
