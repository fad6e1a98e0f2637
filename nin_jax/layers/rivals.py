"""Layers of the networks that the paper compares itself with, and of the micro network that it sets aside."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from nin_jax.layers.conv import convolve
from nin_jax.layers.cpu.products import as_float32
from nin_jax.layers.dropout import random_bits
from nin_jax.layers.initialisers import Initializer, gaussian
from nin_jax.layers.pool import windows


def maxout(x: jax.Array, pieces: int) -> jax.Array:
    """Maximum of `pieces` affine maps, `[..., pieces * F]` to `[..., F]` (paper equation 3, Goodfellow et al. 2013).

        f_k = max over m of (w_km^T x + b_km)

    Piece m of map k is element m * F + k of the last axis, so each column of the weights before it is one filter. The
    gradient goes to the first largest piece.
    """

    def larger(a: jax.Array, b: jax.Array) -> jax.Array:
        # Not jnp.max: its gradient looks for the elements that equal the maximum. Where XLA computes x a second time
        # with other last bits there are none, and the gradient is 0 / 0. A NaN of either is passed on.
        return jnp.where((b > a) | jnp.isnan(b), b, a)

    return functools.reduce(larger, jnp.split(x, pieces, axis=-1))


class LocalConv(nn.Module):
    """Unshared convolution ("locally connected"): a convolution with a kernel and a bias of its own at every position.

        y[b, i, j, f] = sum over k, l, c of x[b, i + k - pad, j + l - pad, c] * W[k, l, c, (i, j, f)] + b[i, j, f]

    Attributes:
      features: number of output channels.
      size: side of the square kernels.
      pad: rows and columns of zeros on each side.
      kernel_init: initializer of the kernels `[size, size, C_in, H' * W' * features]`, a filter at each index of the
        last axis as in `Conv`; the biases `[H', W', features]` start at 0.
      dtype: what the product is computed in; parameters are float32.
    """

    features: int
    size: int = 3
    pad: int = 1
    kernel_init: Initializer = gaussian("he")
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C_in]` to `[B, H', W', features]`, H' = H + 2 * pad - size + 1."""
        x = jnp.pad(x, ((0, 0), (self.pad, self.pad), (self.pad, self.pad), (0, 0)))
        patches = jnp.concatenate(windows(x, self.size, 1, 0.0), axis=-1)
        sites = (*patches.shape[1:3], self.features)
        kernel = self.param("kernel", self.kernel_init, (self.size, self.size, x.shape[-1], math.prod(sites)))
        bias = self.param("bias", nn.initializers.zeros, sites)
        patches, kernel, bias = (a.astype(self.dtype) for a in (patches, kernel, bias))
        return jnp.einsum("bijk,kijf->bijf", patches, kernel.reshape(-1, *sites)) + bias[None]


class StochasticPool(nn.Module):
    """Stochastic pooling of ReLU outputs a >= 0 (Zeiler and Fergus 2013), on the grid of `max_pool`.

    With p_i = a_i / (sum of a over the window), a window becomes a_l with l drawn from p in training, and the mean
    sum of p_i a_i in the test. A window of zeros becomes 0. In training the gradient goes to the drawn element alone.

    The draws of an example are keyed as those of `Dropout`, by the rng "dropout"; probabilities are whole 65536ths.
    """

    size: int = 3
    stride: int = 2

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, example: jax.Array | None = None) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H', W', C]`; `example` int32 `[B]` numbers the examples (default 0 to B - 1)."""
        parts = windows(x.astype(jnp.float32), self.size, self.stride, 0.0)
        sums = list(itertools.accumulate(parts))
        total = sums[-1]
        if not train:
            divisor = jnp.where(total == 0, 1.0, total)
            return functools.reduce(jnp.add, [a / divisor * a for a in parts]).astype(x.dtype)
        bits = random_bits(self.make_rng("dropout"), total.shape, example)
        # Strictly between 0 and the sum, so an element of 0 is never drawn. If all are 0, none is.
        mark = total * ((bits.astype(jnp.float32) + 0.5) / 65536)
        number = functools.reduce(jnp.add, [(s <= mark).astype(jnp.uint8) for s in sums])
        drawn = functools.reduce(jnp.add, [jnp.where(number == k, a, 0.0) for k, a in enumerate(parts)])
        # A NaN or an infinity must show in the result, as it does in `max_pool`.
        return jnp.where(jnp.isfinite(total), drawn, lax.stop_gradient(total)).astype(x.dtype)


class RadialBasis(nn.Module):
    """Gaussian units on every window of the input: the hidden layer of a radial basis network (paper section 3.1).

        y_k = exp(-exp(s_k) / n * sum over the window of (x - c_k)^2),   n = size^2 * C_in

    Distances are means over the window's n numbers, so that a start that suits a window of 75 suits one of 600. Each centre
    starts as one colour, N(0, 1) in each channel and the same at every position: windows of images are smooth, and white
    noise is about as far from all of them. The widths s_k start at 0.

    Attributes:
      features: number of units.
      size: side of the square windows, odd; the image is surrounded by zeros, so that its size stays.
      dtype: what the product of windows and centres is computed in; parameters and distances are float32.
    """

    features: int
    size: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C_in]` to `[B, H, W, features]`, between 0 and 1."""
        shape = self.size, self.size, x.shape[-1], self.features

        def colours(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
            # XLA for CPUs (jaxlib 0.10.2 to 0.11) is now and then wrong where it sums what it has broadcast in the same
            # program (tensorflow/tensorflow#126812), as a program does that draws the centres and uses them.
            return lax.optimization_barrier(jnp.broadcast_to(jax.random.normal(key, shape[2:]), shape))

        centres: Any = self.param("kernel", colours, shape)
        scale: Any = self.param("log_scale", nn.initializers.zeros, (1, 1, 1, self.features))
        pad, n = self.size // 2, math.prod(shape[:3])
        energy = jnp.sum(jnp.square(as_float32(x)), -1, keepdims=True)
        window, edges = (1, self.size, self.size, 1), ((0, 0), (pad, pad), (pad, pad), (0, 0))
        length = lax.reduce_window(energy, 0.0, lax.add, window, (1, 1, 1, 1), edges)
        product = as_float32(convolve(x, centres, pad=pad, dtype=self.dtype))
        distance = length - 2 * product + jnp.sum(jnp.square(centres), (0, 1, 2), keepdims=True)
        return jnp.exp(-jnp.exp(scale) / n * distance).astype(self.dtype)
