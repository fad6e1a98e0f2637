"""SVHN (Netzer et al. 2011): 32x32 crops of house numbers, the digit in the centre (paper section 4.4)."""

from __future__ import annotations

import functools

from nin_jax.pipeline.arrays import Info, from_tfds

INFO = Info(
    name="svhn_cropped",
    classes=10,
    image_shape=(32, 32, 3),
    splits={"train": 73_257, "test": 26_032, "extra": 531_131},
    source="http://ufldl.stanford.edu/housenumbers/",
    version="3.1.0",
)

load = functools.partial(from_tfds, INFO)
