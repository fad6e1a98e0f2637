"""Divides by a number, or by the training images' deviation in each channel."""

from __future__ import annotations

import jax
import numpy as np

from nin_jax.errors import UserError

PER_IMAGE = False
ANY_SIZE = True


def fit(images: np.ndarray, *, divisor: float | None = None) -> dict[str, np.ndarray]:
    """Returns "divisor", float32 `[C]`: the number given (MNIST: 255), or each channel's standard deviation."""
    if divisor is None:
        deviation = images.std(axis=(0, 1, 2), dtype=np.float64)
        return {"divisor": np.where(deviation > 0, deviation, 1.0).astype(np.float32)}
    if not divisor > 0:
        raise UserError(f"scale(divisor={divisor!r}): must be above 0")
    return {"divisor": np.full(images.shape[-1], divisor, np.float32)}


def apply(stats: dict[str, jax.Array], images: jax.Array, *, divisor: float | None = None) -> jax.Array:
    """x / divisor; float32 `[B, H, W, C]` in and out."""
    del divisor
    return images / stats["divisor"].reshape(1, 1, 1, -1)
