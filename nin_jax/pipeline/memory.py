"""A data set that fits in memory: all of it lies on every device, and batch k is a function of (seed, k)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Arrays(NamedTuple):
    """A split: `image` uint8 `[N, H, W, C]`, `label` int32 `[N]`."""

    image: jax.Array
    label: jax.Array


def epoch_order(seed: jax.Array, epoch: jax.Array, examples: int) -> jax.Array:
    """The order of an epoch, int32 `[examples]`: a permutation drawn from (seed, epoch)."""
    return jax.random.permutation(jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 0), epoch), examples)


def batch_indices(order: jax.Array, step: jax.Array, batch_size: int) -> jax.Array:
    """Indices of the batch of update `step` (0 is the first) within its epoch's order, int32 `[batch_size]`.

    An epoch has examples // batch_size batches; what is left over waits for a later epoch's order.
    """
    place = step % (order.shape[0] // batch_size)
    return jax.lax.dynamic_slice_in_dim(order, place * batch_size, batch_size)


def eval_indices(batch: jax.Array, examples: int, batch_size: int) -> tuple[jax.Array, jax.Array]:
    """Indices and weights of an evaluation batch: every example exactly once, in order.

    Returns:
      int32 `[batch_size]` and float32 `[batch_size]`; past the end the index is the last one and the weight 0.
    """
    index = batch * batch_size + jnp.arange(batch_size)
    return jnp.minimum(index, examples - 1), (index < examples).astype(jnp.float32)
