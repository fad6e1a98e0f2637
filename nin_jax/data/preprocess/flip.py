"""Random mirroring: the augmentation of the paper's 8.81 % (section 4.2), training only."""

from __future__ import annotations

import jax
import jax.numpy as jnp

RANDOM = True


def apply(keys: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors each image `[B, H, W, C]` left to right with probability 1/2, by its own key of `keys [B]`."""
    mirrored = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
