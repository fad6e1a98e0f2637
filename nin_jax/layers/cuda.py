"""Forms of layers for NVIDIA GPUs alone: the same mathematics in another order."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

# Windows of up to so many numbers become rows of a matrix. For CIFAR-10's first layer (5x5x3), cuDNN takes several
# times as long as reading and writing its maps: rows "cuDNN" and "patches" of docs/performance.md.
WINDOW = 128
ALIGNED = 8  # matrix units read rows in groups of so many numbers


def by_patches(x: jax.Array, kernel: jax.Array, bias: jax.Array | None, *, pad: int, dtype: Any) -> jax.Array:
    """Convolution with stride 1 as one product, of patches `[B, H', W', size^2 C + 1]` and the kernel.

    The bias is the weight of a channel of ones, so its gradient is part of the kernel's and needs no sum of its own.
    """
    size, _, channels, features = kernel.shape
    x = jnp.pad(x.astype(dtype), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    height, width = (n - size + 1 for n in x.shape[1:3])
    windows = [x[:, i : i + height, j : j + width] for i in range(size) for j in range(size)]
    rows = [kernel.reshape(-1, features)]
    if bias is not None:
        windows.append(jnp.ones((*windows[0].shape[:3], 1), dtype))
        rows.append(bias.reshape(1, features))
    missing = -(size**2 * channels + len(rows) - 1) % ALIGNED
    windows.append(jnp.zeros((*windows[0].shape[:3], missing), dtype))
    rows.append(jnp.zeros((missing, features), kernel.dtype))
    return jnp.concatenate(windows, -1) @ jnp.concatenate(rows).astype(dtype)


def _wide(x: jax.Array) -> Any:
    """What sums are taken in: at least float32."""
    return jnp.float32 if x.dtype == jnp.bfloat16 else x.dtype


@jax.custom_vjp
def dense(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """`x [..., C] @ kernel [C, F] + bias [F]`, rounded to x's dtype once; the gradient of the bias is summed in float32.

    The bias stays float32, and is added to the product's own sums. XLA does that in the product's kernel, but reads and
    writes all maps once more for a bias that is rounded to bfloat16 first ("Compiled for accelerators" in
    docs/performance.md).
    """
    wide = _wide(x)
    row = bias.astype(wide).reshape((1,) * (x.ndim - 1) + bias.shape)
    return (jnp.matmul(x, kernel, preferred_element_type=wide) + row).astype(x.dtype)


def _dense_backward(residual: tuple[jax.Array, jax.Array], cotangent: jax.Array) -> tuple[jax.Array, ...]:
    x, kernel = residual
    places = tuple(range(cotangent.ndim - 1))
    by_kernel = jnp.tensordot(x, cotangent, (places, places))
    return cotangent @ kernel.T, by_kernel, jnp.sum(cotangent, places, _wide(x))


dense.defvjp(lambda x, kernel, bias: (dense(x, kernel, bias), (x, kernel)), _dense_backward)
