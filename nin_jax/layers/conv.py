"""Convolution, and the one place that chooses the form for a platform.

NHWC images, HWIO kernels, zeros at the edges.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from nin_jax.layers import cpu, cuda
from nin_jax.layers.initialisers import Initializer, gaussian

# Inside `with portable(True):` networks are traced in their textbook form, without the forms for one platform alone:
# for exporters, for counting operations, and for batches of symbolic size. It is part of the key of jit's cache.
portable = jax.make_user_context(False)


def by_platform(*arrays: Any, default: Callable[..., Any], **forms: Callable[..., Any]) -> Any:
    """`forms["cpu"](*arrays)` on a CPU, `forms["cuda"]` on an NVIDIA GPU, `forms["tpu"]` on a TPU, where they are given.

    `default(*arrays)` on everything else, and where `portable`. All return the same shapes.
    """
    return default(*arrays) if portable.value else lax.platform_dependent(*arrays, default=default, **forms)


def convolve(
    x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None, *, pad: int, stride: int = 1, dtype: Any = None
) -> jax.Array:
    """Convolution of `[B, H, W, C_in]` with `[size, size, C, F]`, `pad` rows and columns of zeros a side, and `bias [F]`.

        y[b, i, j, f] = bias[f] + sum over k, l, c of x[b, stride i + k - pad, stride j + l - pad, c] * kernel[k, l, c, f]

    If the kernel has C = C_in / groups input channels, the channels of x and y are cut into groups, and each group of y
    sees only its own group of x. Computed in `dtype` (None: that of x), on a CPU mostly in at least float32.

    Returns `[B, H', W', F]` in `dtype`, H' = floor((H + 2 * pad - size) / stride) + 1.
    """
    geometry = {"pad": pad, "stride": stride, "dtype": x.dtype if dtype is None else dtype}
    on_cpu, on_cuda, elsewhere = (functools.partial(f, **geometry) for f in (cpu.convolve, cuda_form, textbook))
    return by_platform(x, kernel, bias, cpu=on_cpu, cuda=on_cuda, default=elsewhere)


def textbook(
    x: jax.Array, kernel: jax.Array, bias: jax.Array | None, *, pad: int, stride: int, dtype: Any
) -> jax.Array:
    """`convolve` by XLA's own convolution; a 1x1 convolution is a matrix product of all positions."""
    x, kernel, groups = x.astype(dtype), kernel.astype(dtype), x.shape[-1] // kernel.shape[2]
    if kernel.shape[:2] == (1, 1) and pad == 0 and stride == groups == 1:
        y = x @ kernel[0, 0]
    else:
        y = lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            ((pad, pad), (pad, pad)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )
    return y if bias is None else add_bias(y, bias)


def cuda_form(
    x: jax.Array, kernel: jax.Array, bias: jax.Array | None, *, pad: int, stride: int, dtype: Any
) -> jax.Array:
    """`convolve` on an NVIDIA GPU: 1x1 with the bias in the product, by patches if the window is small, as in a first layer."""
    window, groups = math.prod(kernel.shape[:3]), x.shape[-1] // kernel.shape[2]
    if kernel.shape[:2] == (1, 1) and pad == 0 and stride == groups == 1 and bias is not None:
        return cuda.dense(x.astype(dtype), kernel[0, 0].astype(dtype), bias)
    if kernel.shape[0] == 1 or window > cuda.WINDOW or stride > 1 or groups > 1:
        return textbook(x, kernel, bias, pad=pad, stride=stride, dtype=dtype)
    return cuda.by_patches(x, kernel, bias, pad=pad, dtype=dtype)


@jax.custom_vjp
def add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
    """`y [..., F] + bias [F]` in y's dtype; the gradient of the bias is summed in float32."""
    return y + bias.astype(y.dtype).reshape((1,) * (y.ndim - 1) + bias.shape)


def _add_bias_backward(_: None, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    return cotangent, jnp.sum(cotangent.astype(jnp.float32), axis=range(cotangent.ndim - 1))


add_bias.defvjp(lambda y, bias: (add_bias(y, bias), None), _add_bias_backward)


class Conv(nn.Module):
    """Convolution with bias and zero padding: y = x * W + b.

    With a 1x1 kernel it is a "cccp" layer (cascaded cross channel parametric pooling, paper section 3.1).

    Attributes:
      features: number of output channels.
      size: side of the square kernel.
      kernel_init: initializer of the kernel `[size, size, C_in / groups, features]`.
      dtype: what is computed in; parameters are float32.
      pad: rows and columns of zeros on each side; None, for an odd size: as many as keep the image's size.
      bias: initial value of the bias `[features]`; None: no bias.
      stride: rows and columns from one position to the next.
      groups: number of groups of channels that do not see each other.
    """

    features: int
    size: int = 1
    kernel_init: Initializer = gaussian("he")
    dtype: Any = jnp.float32
    pad: int | None = None
    bias: float | None = 0.0
    stride: int = 1
    groups: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C_in]` to `[B, H', W', features]`, H' = floor((H + 2 * pad - size) / stride) + 1."""
        pad = self.size // 2 if self.pad is None else self.pad
        if x.shape[-1] % self.groups or self.features % self.groups:
            raise ValueError(f"{x.shape[-1]} and {self.features} maps cannot be cut into {self.groups} groups")
        if min(x.shape[1:3]) + 2 * pad < self.size:
            raise ValueError(f"kernel of {self.size} on {x.shape[1]} x {x.shape[2]} with pad {pad}: must fit")
        shape = self.size, self.size, x.shape[-1] // self.groups, self.features
        kernel: Any = self.param("kernel", self.kernel_init, shape)
        bias: Any = None
        if self.bias is not None:
            bias = self.param("bias", nn.initializers.constant(self.bias), (self.features,))
        return convolve(x, kernel, bias, pad=pad, stride=self.stride, dtype=self.dtype)
