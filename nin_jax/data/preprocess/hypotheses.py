"""One hypothesis of each cluster, training only: HCP trains on fewer hypotheses of a picture than it is evaluated on."""

from __future__ import annotations

import jax
import jax.numpy as jnp

RANDOM = True


def apply(keys: jax.Array, images: jax.Array, *, clusters: int = 10) -> jax.Array:
    """Bags `[B, clusters * k * S, S, C]` to `[B, clusters * S, S, C]`, see `data.objects.hypotheses`.

    The hypothesis of each cluster is drawn anew at every update, by the bag's own key of `keys [B]`.
    """
    count, height, size, channels = images.shape
    each, rest = divmod(height, clusters * size)
    if not each or rest:
        raise ValueError(f"images of {height} x {size} are no bags of {clusters} clusters")
    drawn = jax.vmap(lambda key: jax.random.randint(key, (clusters,), 0, each))(keys)
    bags = images.reshape(count, clusters, each, size * size * channels)
    return jnp.take_along_axis(bags, drawn[:, :, None, None], axis=2).reshape(count, -1, size, channels)
