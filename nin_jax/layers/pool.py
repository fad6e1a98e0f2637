"""Pools, on the grid of cuda-convnet and Caffe.

A pool is the maximum or the sum of shifted slices, except on TPUs. NHWC.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nin_jax.layers.conv import by_platform
from nin_jax.layers.cpu.products import as_float32


def max_pool(x: jax.Array, size: int = 3, stride: int = 2, start: int = 0) -> jax.Array:
    """Maximum of each window, `[B, H, W, C]` to `[B, H', W', C]`, H' = ceil((H - start - size) / stride) + 1.

    The gradient goes to the first largest element of a window in reading order, as in PyTorch, so it is the same on
    every device and in every run (XLA's own scatter is not deterministic on a GPU, and slower on CPUs and GPUs).
    `start` is 0, or negative: then the first window begins that many rows above and columns left of the image.
    """

    def on_cpu(x: jax.Array) -> jax.Array:
        y: Any = by_slices(as_float32(x), size, stride)
        if y.dtype == x.dtype:
            return y
        # The gradient of y is rounded once, not anew for each window that reads it (jax 0.10 ignores the barrier).
        return lax.optimization_barrier(y).astype(x.dtype)

    slices, window = (lambda x, form=form: form(x, size, stride) for form in (by_slices, by_window))
    return by_platform(_framed(x, start, -jnp.inf), cpu=on_cpu, tpu=window, default=slices)


def avg_pool(x: jax.Array, size: int = 3, stride: int = 2, start: int = 0, *, count_zeros: bool = False) -> jax.Array:
    """Mean of each window, summed in float32; grid and `start` are those of `max_pool`.

    At the edges the sum is divided by the number of elements inside the image (6 or 4, not 9), as cuda-convnet does; with
    `count_zeros` by size^2, as some ports do.
    """
    total = functools.reduce(jnp.add, windows(_framed(as_float32(x), start, 0.0), size, stride, 0.0))
    if count_zeros:
        return (total / size**2).astype(x.dtype)
    first = [start + np.arange(out) * stride for out in total.shape[1:3]]
    counts = [np.minimum(f + size, n) - np.maximum(f, 0) for n, f in zip(x.shape[1:3], first, strict=True)]
    return (total / jnp.asarray(np.outer(*counts)[None, :, :, None], total.dtype)).astype(x.dtype)


def global_average_pool(x: jax.Array) -> jax.Array:
    """Mean of each map, `[B, H, W, C]` to float32 `[B, C]`: the classifier without parameters (paper section 3.2)."""
    return jnp.mean(x.astype(jnp.float32), axis=(1, 2))


def windows(x: jax.Array, size: int, stride: int, fill: float) -> list[jax.Array]:
    """The size^2 slices `[B, H', W', C]` whose element (i, j) is one position of window (i, j), in reading order.

    The first window starts at 0, there are ceil((in - size) / stride) + 1 of them, and the last may hang over the edge, where
    `fill` stands. That is the grid of PyTorch's `ceil_mode`.
    """
    outs = [_count(n, size, stride) for n in x.shape[1:3]]
    over = [(0, max(0, (out - 1) * stride + size - n)) for out, n in zip(outs, x.shape[1:3], strict=True)]
    x = jnp.pad(x, ((0, 0), *over, (0, 0)), constant_values=fill)
    spans = [[(k, k + (out - 1) * stride + 1) for k in range(size)] for out in outs]
    # Indexing would be the same, but for a batch of symbolic size, where JAX makes a gather of it.
    corners = [((0, a, c, 0), (x.shape[0], b, d, x.shape[3])) for a, b in spans[0] for c, d in spans[1]]
    return [lax.slice(x, first, end, (1, stride, stride, 1)) for first, end in corners]


def _count(n: int, size: int, stride: int) -> int:
    """Number of windows along an axis of length n. A window that would start outside the image is left out."""
    out = max(0, math.ceil((n - size) / stride)) + 1
    return out - 1 if (out - 1) * stride >= n else out


def _framed(x: jax.Array, start: int, fill: float) -> jax.Array:
    """x with -`start` rows and columns of `fill` before it, so that the first window starts there."""
    return jnp.pad(x, ((0, 0), (-start, 0), (-start, 0), (0, 0)), constant_values=fill) if start else x


def by_window(x: jax.Array, size: int, stride: int) -> jax.Array:
    """`max_pool` by XLA's own window and gradient, for which a TPU has operations."""
    over = [(0, max(0, (_count(n, size, stride) - 1) * stride + size - n)) for n in x.shape[1:3]]
    lowest = np.array(-np.inf, x.dtype)  # of NumPy: only for a constant does JAX know the gradient
    return lax.reduce_window(x, lowest, lax.max, (1, size, size, 1), (1, stride, stride, 1), ((0, 0), *over, (0, 0)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def by_slices(x: jax.Array, size: int, stride: int) -> jax.Array:
    """`max_pool` with a gradient without scatter."""
    return functools.reduce(jnp.maximum, windows(x, size, stride, -jnp.inf))


def _by_slices_forward(x: jax.Array, size: int, stride: int):
    best, *others = windows(x, size, stride, -jnp.inf)
    winner = jnp.zeros(best.shape, jnp.uint8)
    for k, other in enumerate(others, 1):
        larger = other > best
        winner = jnp.where(larger, jnp.uint8(k), winner)
        # maximum, not where: a NaN must show in the result.
        best = jnp.maximum(best, other)
    return best, (winner, x.shape)


def _by_slices_backward(size: int, stride: int, residual, cotangent: jax.Array):
    winner, (batch, height, width, channels) = residual
    zero = jnp.zeros((), cotangent.dtype)
    reach = -(-size // stride)  # windows that an element may lie in, along an axis
    outs = [n + reach - 1 for n in winner.shape[1:3]]

    def gradient_of(row: int, column: int) -> jax.Array:
        """The gradient of elements (row, column), (row, column + stride), ...: each lies in up to `reach`^2 windows."""
        total = jnp.zeros((batch, *outs, channels), cotangent.dtype)
        for i, j in itertools.product(range(reach), repeat=2):
            if row + i * stride < size and column + j * stride < size:
                won = winner == (row + i * stride) * size + column + j * stride
                edges = ((0, 0, 0), (i, reach - 1 - i, 0), (j, reach - 1 - j, 0), (0, 0, 0))
                total += lax.pad(jnp.where(won, cotangent, zero), zero, edges)
        return total

    # Elements whose row and column have the same remainder by `stride` are computed together, then interleaved.
    rows = [jnp.stack([gradient_of(row, column) for column in range(stride)], axis=3) for row in range(stride)]
    whole = jnp.stack(rows, axis=2).reshape(batch, outs[0] * stride, outs[1] * stride, channels)
    missing = [(0, max(0, n - w)) for n, w in zip((height, width), whole.shape[1:3], strict=True)]
    return (jnp.pad(whole, ((0, 0), *missing, (0, 0)))[:, :height, :width],)


by_slices.defvjp(_by_slices_forward, _by_slices_backward)
