"""Matrix products and sums as XLA computes them fastest on a CPU."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from nin_jax.layers.cpu import tuning


def as_float32(x: jax.Array) -> jax.Array:
    """x in float32 if it is bfloat16: XLA rounds after every sum and maximum of bfloat16, without vector instructions.

    Row "3x3 max pool of bfloat16" of docs/performance.md: 4.7 times as fast on one CPU, 12.8 on another.
    """
    return x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x


@jax.custom_vjp
def widen(x: jax.Array) -> jax.Array:
    """bfloat16 in float32, with a gradient that is rounded in integer arithmetic: XLA of jax 0.10 rounds number by number.

    Row "gradient of a convolution's input rounded to bfloat16" of docs/performance.md.
    """
    return x.astype(jnp.float32)


widen.defvjp(lambda x: (widen(x), None), lambda _, cotangent: (to_bfloat16(cotangent),))


def to_bfloat16(x: jax.Array) -> jax.Array:
    """`x.astype(bfloat16)` of float32, ties to even: a bfloat16 is the upper half of a float32."""
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)
    nan = bits | 1 << 22  # rounding might carry into its sign
    upper = (jnp.where(jnp.isnan(x), nan, rounded) >> 16).astype(jnp.uint16)
    return lax.bitcast_convert_type(upper, jnp.bfloat16)


def add_bias(y: jax.Array, bias: jax.Array | None) -> jax.Array:
    """`y [..., F] + bias [F]` in y's dtype, added and differentiated in float32; None adds nothing."""
    if bias is None:
        return y
    wide = as_float32(y)
    return (wide + bias.astype(wide.dtype).reshape((1,) * (y.ndim - 1) + bias.shape)).astype(y.dtype)


def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`x [..., C] @ kernel [C, F]`, to `[..., F]`."""
    y: Any = _matmul(x.reshape(-1, x.shape[-1]), kernel)
    return y.reshape(*x.shape[:-1], -1)


@jax.custom_vjp
def _matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`x [M, C] @ kernel [C, F]`, whose gradient by the kernel sums over M in parts."""
    return x @ kernel


def _matmul_in_parts(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`x [parts, M / parts, C] @ kernel [C, F]`."""
    # A copy of the kernel for each part: XLA would otherwise compute x a second time in the other shape.
    return x @ jnp.broadcast_to(kernel, (x.shape[0], *kernel.shape))


def _matmul_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    parts = tuning.KERNEL_GRADIENT_PARTS if len(x) % tuning.KERNEL_GRADIENT_PARTS == 0 else 1
    x_parts = x.reshape(parts, -1, x.shape[1])
    return _matmul_in_parts(x_parts, kernel).reshape(len(x), -1), (x_parts, kernel)


def _matmul_backward(residual: tuple[jax.Array, jax.Array], cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = residual
    cotangent = cotangent.reshape(*x.shape[:2], -1)
    # XLA is faster where the result has more columns than rows.
    transposed = x.shape[-1] > cotangent.shape[-1]
    rows, columns = (cotangent, x) if transposed else (x, cotangent)
    wide = jnp.float32 if x.dtype == jnp.bfloat16 else x.dtype
    by_kernel = jnp.einsum("nmc,nmf->ncf", rows, columns, preferred_element_type=wide).sum(0)
    by_x = _matmul_in_parts(cotangent, kernel.T).reshape(-1, x.shape[-1])
    return by_x, (by_kernel.T if transposed else by_kernel).astype(kernel.dtype)


_matmul.defvjp(_matmul_forward, _matmul_backward)
