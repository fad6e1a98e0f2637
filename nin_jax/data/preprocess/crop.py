"""Random translation: the augmentation of the paper's 8.81 % (section 4.2), training only."""

from __future__ import annotations

import jax
import jax.numpy as jnp

RANDOM = True


def apply(keys: jax.Array, images: jax.Array, *, pad: int = 4) -> jax.Array:
    """Pads each side with `pad` zeros and cuts a window of the old size at a random place.

    Args:
      keys: `[B]` random keys, one for each image; both offsets are uniform on 0 to 2 * pad, inclusive.
      images: float32 `[B, H, W, C]`, after the preprocessing, so 0 is its grey.
      pad: pixels.
    """
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))

    def window(key: jax.Array, image: jax.Array) -> jax.Array:
        y, x = jax.random.randint(key, (2,), 0, 2 * pad + 1)
        return jax.lax.dynamic_slice(image, (y, x, 0), images.shape[1:])

    return jax.vmap(window)(keys, padded)
