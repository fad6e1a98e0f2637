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
    """x - mean; float32 `[B, H, W, C]` in and out."""
    del per
    return images - stats["mean"].reshape((1,) * (images.ndim - stats["mean"].ndim) + stats["mean"].shape)
