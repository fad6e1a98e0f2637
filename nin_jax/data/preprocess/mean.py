"""Subtracts the training images' mean."""

from __future__ import annotations

import jax
import numpy as np

from nin_jax.errors import UserError

PER_IMAGE = False
ANY_SIZE = True
AXES = {"pixel": (0,), "channel": (0, 1, 2)}


def fit(images: np.ndarray, *, per: str = "pixel") -> dict[str, np.ndarray]:
    """Learns "mean" of float32 `[N, H, W, C]`: float32 `[H, W, C]` (per="pixel") or `[C]` (per="channel")."""
    if per not in AXES:
        raise UserError(f"mean(per={per!r}): must be 'pixel' or 'channel'")
    return {"mean": images.mean(axis=AXES[per], dtype=np.float64).astype(np.float32)}


def apply(stats: dict[str, jax.Array], images: jax.Array, *, per: str = "pixel") -> jax.Array:
    """x - mean; float32 `[B, H, W, C]` in and out. Raises `UserError` if a mean by pixel has another size."""
    del per
    mean = stats["mean"]
    if mean.ndim > 1 and images.shape[-3:] != mean.shape:  # a size of 1 would be repeated
        given, fitted = (" x ".join(map(str, shape)) for shape in (images.shape[-3:-1], mean.shape[:2]))
        raise UserError(f"mean(per='pixel'): images of {given}, and the mean is of {fitted}")
    return images - mean.reshape((1,) * (images.ndim - mean.ndim) + mean.shape)
