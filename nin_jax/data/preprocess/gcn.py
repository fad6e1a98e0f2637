"""Global contrast normalisation, image by image (Goodfellow et al. 2013, pylearn2), used for CIFAR (paper section 4.2)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

PER_IMAGE = True


def fit(images, *, scale: float = 55.0, sqrt_bias: float = 0.0, use_std: bool = False) -> dict[str, Any]:
    """Nothing is learned: returns {}."""
    del images, scale, sqrt_bias, use_std
    return {}


def apply(
    stats: dict[str, Any], images: jax.Array, *, scale: float = 55.0, sqrt_bias: float = 0.0, use_std: bool = False
) -> jax.Array:
    """Subtracts each image's mean over all its values and divides by its contrast.

        x <- x - mean(x),   d = sqrt(sqrt_bias + sum(x^2)) / scale,   x <- x / d   (d < 1e-8 counts as 1)

    With scale 55 and sqrt_bias 0 every image gets the norm 55, about sqrt(32 * 32 * 3), so a variance of about 1.

    Args:
      stats: {}.
      images: float32 `[B, H, W, C]`, 0 to 255.
      scale: norm (with `use_std`, the standard deviation) of the result.
      sqrt_bias: added under the root, so that flat images are not blown up.
      use_std: the mean of the squares instead of their sum.
    """
    if not scale > 0 or sqrt_bias < 0:
        raise ValueError("scale must be above 0, and sqrt_bias 0 or more")
    axes = (1, 2, 3)
    x = images - jnp.mean(images, axes, keepdims=True)
    # Once more, because the rounding of the first mean would be all the contrast that a flat image has.
    x = x - jnp.mean(x, axes, keepdims=True)
    squares = (jnp.mean if use_std else jnp.sum)(jnp.square(x), axes, keepdims=True)
    d = jnp.sqrt(sqrt_bias + squares) / scale
    return x / jnp.where(d < 1e-8, 1.0, d)
