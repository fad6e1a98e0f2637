"""Batch normalisation and local response normalisation."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from nin_jax.layers.cpu.products import as_float32


class BatchNorm(nn.BatchNorm):
    """Batch normalisation (Ioffe and Szegedy 2015) in float32, with running statistics of momentum 0.9.

    With `axis_name` the statistics are those of the global batch, over all replicas of that mapped axis.
    """

    momentum: float = 0.9

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalises `x [..., C]` by the statistics of the batch in training, else by the running ones.

        Keeps the dtype.
        """
        return super().__call__(x.astype(jnp.float32), use_running_average=not train).astype(x.dtype)


def response_normalisation(x: jax.Array, size: int = 9, alpha: float = 0.001, beta: float = 0.75) -> jax.Array:
    """Local response normalisation across channels, `[B, H, W, C]` (Krizhevsky, Hinton et al. 2012).

        y_i = x_i / (1 + alpha / N * sum of x_j^2 for j from i - N // 2 to i + N // 2)^beta,   N = `size`, odd

    with alpha divided by N, as in cuda-convnet, Caffe and PyTorch. Channels beyond the first and last count as 0. The sum
    and the power are computed in at least float32.
    """
    window, edges = (1, 1, 1, size), ((0, 0), (0, 0), (0, 0), (size // 2, size // 2))
    wide = as_float32(x)
    squares = lax.reduce_window(jnp.square(wide), 0.0, lax.add, window, (1, 1, 1, 1), edges)
    return (wide * (1 + alpha / size * squares) ** -beta).astype(x.dtype)
