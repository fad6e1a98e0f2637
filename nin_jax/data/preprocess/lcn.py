"""Local contrast normalisation, image by image and channel by channel (pylearn2), used for SVHN (section 4.4)."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

PER_IMAGE = True
ANY_SIZE = True

SIZE, SIGMA = 7, 2.0  # the window of pylearn2's lecun_lcn


def fit(images: Any, *, channels: Literal["all", "first"] = "all") -> dict[str, Any]:
    """Nothing is learned: returns {}."""
    del images, channels
    return {}


def apply(stats: dict[str, Any], images: jax.Array, *, channels: Literal["all", "first"] = "all") -> jax.Array:
    """Subtracts a local mean and divides by a local contrast, but by no less than the image's mean contrast.

        c = x - G*x,   s = sqrt(G * x^2),   m = mean(s) over the image,   y = c / max(m, s, 1e-4)

    G is a 7x7 Gaussian of deviation 2 that sums to 1, over zeros outside the picture. The contrast is of the raw x, as
    in pylearn2.

    Args:
      stats: {}.
      images: float32 `[B, H, W, C]`; so is the result.
      channels: "all", as pylearn2 did when the paper appeared; or "first", which leaves the other channels as they are,
        as pylearn2 has done since 2014-01-17 because of a misplaced `return`.
    """
    del stats
    if channels == "first":
        first, others = jnp.split(images, [1], axis=-1)
        return jnp.concatenate([apply({}, first), others], -1)
    line = np.exp(-((np.arange(SIZE) - SIZE // 2) ** 2) / (2 * SIGMA**2))
    line = (line / line.sum()).astype(np.float32)

    def blur(x: jax.Array) -> jax.Array:
        """G*x, one axis after the other, as shifted sums: on a CPU a depthwise convolution is slow."""
        half = SIZE // 2
        for axis in (1, 2):
            edges = [(half, half) if a == axis else (0, 0) for a in range(4)]
            padded, n = jnp.pad(x, edges), x.shape[axis]
            x = jnp.asarray(sum(w * jax.lax.slice_in_dim(padded, k, k + n, axis=axis) for k, w in enumerate(line)))
        return x

    contrast = jnp.sqrt(blur(jnp.square(images)))
    mean = jnp.mean(contrast, (1, 2), keepdims=True)
    return (images - blur(images)) / jnp.maximum(jnp.maximum(mean, contrast), 1e-4)
