"""MNIST (LeCun, Cortes, Burges): 28x28 handwritten digits in grey (paper section 4.5)."""

from __future__ import annotations

import functools

from nin_jax.data.splits import Info
from nin_jax.data.tfds import from_tfds

INFO = Info(
    name="mnist",
    classes=10,
    image_shape=(28, 28, 1),
    splits={"train": 60_000, "test": 10_000},
    source="http://yann.lecun.com/exdb/mnist/",
    version="3.0.1",
    prepared=True,
)

load = functools.partial(from_tfds, INFO)
