"""Forms of layers for CPUs alone: the same mathematics in another order.

This file: a convolution made of matrix products, by patches or by the convolution theorem.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from nin_jax.layers.cpu import patches, theorem, tuning
from nin_jax.layers.cpu.products import add_bias, matmul, widen


def convolve(
    x: jax.Array, kernel: jax.Array, bias: jax.Array | None, *, pad: int, stride: int, dtype: Any
) -> jax.Array:
    """As `layers.conv.textbook`, made of matrix products.

    All but the 1x1 convolutions compute bfloat16 inputs in float32 and round the result once: transforms in bfloat16
    would be off by several per cent, and few CPUs multiply in bfloat16.
    """
    groups = x.shape[-1] // kernel.shape[2]
    if kernel.shape[:2] == (1, 1) and pad == 0 and stride == groups == 1:
        return add_bias(matmul(x.astype(dtype), kernel[0, 0].astype(dtype)), bias)
    wide = jnp.float32 if dtype == jnp.bfloat16 else dtype
    biases = [None] * groups if bias is None else jnp.split(bias.astype(wide), groups)
    x_wide: Any = widen(x) if x.dtype == jnp.bfloat16 else x
    inputs, kernels = jnp.split(x_wide.astype(wide), groups, -1), jnp.split(kernel.astype(wide), groups, -1)
    parts = zip(inputs, kernels, biases, strict=True)
    return jnp.concatenate([_one_group(*part, pad, stride) for part in parts], -1).astype(dtype)


def _one_group(x: jax.Array, kernel: jax.Array, bias: jax.Array | None, pad: int, stride: int) -> jax.Array:
    if stride > 1:
        if x.shape[-1] < tuning.THEOREM_CHANNELS:
            return patches.strided(x, kernel, bias, pad, stride)
        x, kernel = patches.fold_stride(x, kernel, pad, stride)
        pad = 0
    if x.shape[0] >= tuning.THEOREM_IMAGES and x.shape[-1] >= tuning.THEOREM_CHANNELS:
        return add_bias(theorem.convolve(x, kernel, pad), bias)
    return patches.convolve(x, kernel, pad, bias)
