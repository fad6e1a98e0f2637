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
