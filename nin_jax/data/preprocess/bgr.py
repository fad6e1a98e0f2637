"""The order of the colour channels of OpenCV, and so of most networks trained with Caffe."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

PER_IMAGE = True
ANY_SIZE = True


def fit(images: Any) -> dict[str, Any]:
    """Nothing is learned: returns {}."""
    del images
    return {}


def apply(stats: dict[str, Any], images: jax.Array) -> jax.Array:
    """Red, green, blue to blue, green, red: the last axis of float32 `[B, H, W, C]` in reverse."""
    del stats
    return jnp.flip(images, -1)
