"""CIFAR-10 (Krizhevsky 2009): 32x32 colour photographs of ten kinds of objects (paper section 4.2)."""

from __future__ import annotations

import functools

from nin_jax.data.splits import Info
from nin_jax.data.tfds import from_tfds

INFO = Info(
    name="cifar10",
    classes=10,
    image_shape=(32, 32, 3),
    splits={"train": 50_000, "test": 10_000},
    source="https://www.cs.toronto.edu/~kriz/cifar.html",
    version="3.0.2",
    prepared=True,
    class_names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
)

load = functools.partial(from_tfds, INFO)
