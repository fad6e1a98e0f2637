"""A preprocess op from outside the zoo that fits something that is not finite."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

PER_IMAGE = False


def fit(images: np.ndarray) -> dict[str, Any]:
    """The logarithm of a difference that is 0."""
    with np.errstate(divide="ignore"):
        return {"offset": np.log(np.float32(images.max() - images.max()))}


def apply(stats: dict[str, Any], images: jax.Array) -> jax.Array:
    """Adds it."""
    return images + stats["offset"]
