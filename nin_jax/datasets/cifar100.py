"""CIFAR-100 (Krizhevsky 2009): 32x32 colour photographs of a hundred kinds of objects (paper section 4.3)."""

from __future__ import annotations

import functools

from nin_jax.pipeline.arrays import Info, from_tfds

INFO = Info(
    name="cifar100",
    classes=100,
    image_shape=(32, 32, 3),
    splits={"train": 50_000, "test": 10_000},
    source="https://www.cs.toronto.edu/~kriz/cifar.html",
    version="3.0.2",
)

load = functools.partial(from_tfds, INFO)
