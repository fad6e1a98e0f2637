"""Convolution as one matrix product of all patches: for few input channels, and few images."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from nin_jax.layers.cpu.products import add_bias, matmul


def convolve(x: jax.Array, kernel: jax.Array, pad: int, bias: jax.Array | None = None) -> jax.Array:
    """Patches `[B * H' * W', size^2 * C_in]` times the kernel `[size^2 * C_in, F]`, to `[B, H', W', F]`."""
    size, features = kernel.shape[0], kernel.shape[-1]
    x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    height, width = (n - size + 1 for n in x.shape[1:3])
    # First the rows of each window, then its rows together: fewer and longer copies than element by element.
    rows = jnp.concatenate([x[:, :, j : j + width] for j in range(size)], axis=-1)
    patches, kernel = [rows[:, i : i + height] for i in range(size)], kernel.reshape(-1, features)
    if bias is not None:
        # The bias is the weight of a channel of ones, so its gradient is part of the kernel's and needs no sum of its own.
        patches.append(jnp.ones((len(x), height, width, 1), x.dtype))
        kernel = jnp.concatenate([kernel, bias.reshape(1, features)])
    return matmul(jnp.concatenate(patches, axis=-1), kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def strided(x: jax.Array, kernel: jax.Array, bias: jax.Array | None, pad: int, stride: int) -> jax.Array:
    """Convolution with a stride, for few input channels: XLA's own, or by patches where a gradient is wanted.

    Rows "11x11 convolution of stride 4, 3 to 96 maps of 224x224": XLA is fast forwards, and slow at the gradient.
    """
    edges = ((pad, pad), (pad, pad))
    y = lax.conv_general_dilated(x, kernel, (stride, stride), edges, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return add_bias(y, bias)


def _strided_forward(x: jax.Array, kernel: jax.Array, bias: jax.Array | None, pad: int, stride: int):
    return jax.vjp(lambda x, kernel, bias: convolve(*fold_stride(x, kernel, pad, stride), 0, bias), x, kernel, bias)


strided.defvjp(_strided_forward, lambda pad, stride, pull, cotangent: pull(cotangent))


def fold_stride(x: jax.Array, kernel: jax.Array, pad: int, stride: int) -> tuple[jax.Array, jax.Array]:
    """Input and kernel of the same convolution with stride 1 and no padding.

    Each square of stride x stride positions becomes one position with stride^2 times the channels. The kernel is filled up with
    zeros to a multiple of the stride.
    """
    size, features = kernel.shape[0], kernel.shape[-1]
    folded = -(-size // stride)
    outs = [(n + 2 * pad - size) // stride + 1 for n in x.shape[1:3]]
    lengths = [(out - 1 + folded) * stride for out in outs]
    edges = [(pad, max(0, length - n - pad)) for length, n in zip(lengths, x.shape[1:3], strict=True)]
    x = jnp.pad(x, ((0, 0), *edges, (0, 0)))[:, : lengths[0], : lengths[1]]
    kernel = jnp.pad(kernel, (*[(0, folded * stride - size)] * 2, (0, 0), (0, 0)))
    x = x.reshape(x.shape[0], lengths[0] // stride, stride, lengths[1] // stride, stride, -1)
    kernel = kernel.reshape(folded, stride, folded, stride, -1, features)
    x, kernel = x.transpose(0, 1, 3, 2, 4, 5), kernel.transpose(0, 2, 1, 3, 4, 5)
    return x.reshape(*x.shape[:3], -1), kernel.reshape(folded, folded, -1, features)
