"""The layers of the paper and of its rivals, as small pure functions and Flax modules. NHWC throughout.

Two of them are written differently from the textbook, for speed, with the same mathematics: a 1x1 convolution
is a matrix product over the flattened positions, and a pool is the maximum (or sum) of shifted slices.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Initializer = Callable[..., jax.Array]


def gaussian(deviation: float | str) -> Initializer:
    """Weights from N(0, deviation^2); "he" is sqrt(2 / fan-in), which keeps the size of a ReLU layer's output."""

    def init(key: jax.Array, shape: Sequence[int], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        scale = jnp.sqrt(jnp.asarray(2 / math.prod(shape[:-1]), dtype)) if deviation == "he" else float(deviation)
        # Drawn flat: the same numbers, and XLA compiles them in a fifth of the time.
        return jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape) * scale

    return init


class Conv(nn.Module):
    """Convolution with bias, stride 1, zero padding that keeps the size: y = x * W + b.

    A 1x1 kernel (a "cccp" layer: cascaded cross channel parametric pooling, paper section 3.1) is computed as the
    matrix product `x.reshape(-1, C_in) @ W`, which a CPU does several times faster than a convolution.

    Attributes:
      features: number of output maps.
      size: side of the square kernel, odd.
      kernel_init: initializer of the kernel `[size, size, C_in, features]`; the bias `[features]` starts at 0.
      dtype: what the product is computed in; parameters are kept in float32.
    """

    features: int
    size: int = 1
    kernel_init: Initializer = gaussian("he")
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C_in]` to `[B, H, W, features]`."""
        kernel = self.param("kernel", self.kernel_init, (self.size, self.size, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        if self.size == 1:
            y = (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:-1], self.features)
        else:
            y = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return y + bias.reshape((1,) * (y.ndim - 1) + bias.shape)


def _windows(x: jax.Array, size: int, stride: int, fill: float) -> list[jax.Array]:
    """The size^2 slices whose element (i, j) is one position of window (i, j), row by row within the window.

    The grid is that of cuda-convnet and Caffe (and of PyTorch's `ceil_mode`): the first window starts at 0, there are
    ceil((in - size) / stride) + 1 of them, and the last may hang over the edge, where `fill` stands.
    """
    outs = [_pooled(n, size, stride) for n in x.shape[1:3]]
    over = [(0, max(0, (out - 1) * stride + size - n)) for out, n in zip(outs, x.shape[1:3], strict=True)]
    x = jnp.pad(x, ((0, 0), *over, (0, 0)), constant_values=fill)
    spans = [[(k, k + (out - 1) * stride + 1) for k in range(size)] for out in outs]
    return [x[:, a:b:stride, c:d:stride] for a, b in spans[0] for c, d in spans[1]]


def _pooled(n: int, size: int, stride: int) -> int:
    """Number of windows along an axis of n. A window that would start outside the picture is left out."""
    out = max(0, math.ceil((n - size) / stride)) + 1
    return out - 1 if (out - 1) * stride >= n else out


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def max_pool(x: jax.Array, size: int = 3, stride: int = 2) -> jax.Array:
    """Largest value of each window, `[B, H, W, C]` to `[B, H', W', C]`, H' = ceil((H - size) / stride) + 1.

    The gradient goes to the first largest element of a window in reading order, as in PyTorch, so it is the same on
    every device and in every run (XLA's own scatter is not deterministic on a GPU).
    """
    return functools.reduce(jnp.maximum, _windows(x, size, stride, -jnp.inf))


def _max_pool_forward(x: jax.Array, size: int, stride: int):
    best, *others = _windows(x, size, stride, -jnp.inf)
    winner = jnp.zeros(best.shape, jnp.uint8)
    for k, other in enumerate(others, 1):
        larger = other > best
        winner = jnp.where(larger, jnp.uint8(k), winner)
        # maximum, not where: a NaN must show in the result, as it does without a gradient.
        best = jnp.maximum(best, other)
    return best, (winner, x.shape)


def _max_pool_backward(size: int, stride: int, residual, cotangent: jax.Array):
    winner, shape = residual

    def spread(k: int) -> jax.Array:
        """Puts each window's gradient where its k-th element lies, over the full extent of the windows."""
        row, column = divmod(k, size)
        part = jnp.where(winner == k, cotangent, jnp.zeros((), cotangent.dtype))
        edges = [(i, size - 1 - i, stride - 1) for i in (row, column)]
        return lax.pad(part, jnp.zeros((), part.dtype), ((0, 0, 0), *edges, (0, 0, 0)))

    total = functools.reduce(jnp.add, [spread(k) for k in range(size * size)])
    rest = [max(0, n - have) for n, have in zip(shape[1:3], total.shape[1:3], strict=True)]
    total = jnp.pad(total, ((0, 0), (0, rest[0]), (0, rest[1]), (0, 0)))
    return (total[:, : shape[1], : shape[2]],)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def avg_pool(x: jax.Array, size: int = 3, stride: int = 2) -> jax.Array:
    """Mean of each window over the elements that lie in the picture; the grid of `max_pool`.

    At the right and lower edge the sum is divided by the real count (6 or 4, not 9), as cuda-convnet does.
    """
    total = functools.reduce(jnp.add, _windows(x, size, stride, 0.0))
    counts = [np.minimum(np.arange(out) * stride + size, n) - np.arange(out) * stride
              for n, out in zip(x.shape[1:3], total.shape[1:3], strict=True)]  # fmt: skip
    return total / jnp.asarray(np.outer(*counts)[None, :, :, None], total.dtype)


def global_average_pool(x: jax.Array) -> jax.Array:
    """Mean of each map, `[B, H, W, C]` to float32 `[B, C]`: the classifier without parameters (paper section 3.2)."""
    return jnp.mean(x.astype(jnp.float32), axis=(1, 2))


POOLS: dict[str, Callable[[jax.Array], Any]] = {"max": max_pool, "avg": avg_pool}


class Dropout(nn.Module):
    """Sets each element to 0 with probability `rate` while training, independently for every example.

    "classic" is the form of the paper's own code (cuda-convnet): x * mask in training, x * (1 - rate) in the test.
    "inverted" is the form of Caffe, PyTorch and Flax: x * mask / (1 - rate) in training, x in the test. They are the
    same network, but with a fixed initial deviation the scale of the training activations differs by 1 / (1 - rate).

    The mask of an example is a function of (the "dropout" key, the layer's place in the model, the example's index in
    the global batch), so it does not depend on how many devices share the batch.

    Attributes:
      rate: probability of a zero, 0 <= rate < 1, to 1/65536.
      kind: "classic" or "inverted".
    """

    rate: float
    kind: Literal["classic", "inverted"] = "inverted"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, example: jax.Array | None = None) -> jax.Array:
        """Drops elements of `x [B, ...]`; `example` int32 `[B]` numbers the examples (default 0 to B - 1)."""
        keep = 1.0 - round(self.rate * 65536) / 65536
        if not 0 < keep <= 1:
            raise ValueError(f"dropout of {self.rate}: must be 0 or more, and less than 1")
        if not train:
            return x * jnp.asarray(keep, x.dtype) if self.kind == "classic" else x
        if keep == 1.0:
            return x
        key = self.make_rng("dropout")
        example = jnp.arange(x.shape[0]) if example is None else example
        keys = jax.vmap(functools.partial(jax.random.fold_in, key))(example)
        # 16 random bits an element are enough and half the work of the 32 that a float would take.
        # They are drawn flat: the same numbers as in x's shape, and XLA compiles them in a fifth of the time.
        bits = jax.vmap(lambda k: jax.random.bits(k, (math.prod(x.shape[1:]),), jnp.uint16))(keys).reshape(x.shape)
        x = jnp.where(bits < round(keep * 65536), x, jnp.zeros((), x.dtype))
        return x if self.kind == "classic" else x / jnp.asarray(keep, x.dtype)


class MLPConv(nn.Module):
    """The paper's mlpconv layer (equation 2): a perceptron slid over the input like a convolution.

        f1 = max(W1 * x + b1, 0),   f2 = max(W2 f1 + b2, 0),   ...,   fn = max(Wn f(n-1) + bn, 0)

    W1 is size x size, the others 1x1 (position by position).

    Attributes:
      names: name of each layer, such as ("conv1", "cccp1", "cccp2").
      widths: number of maps of each layer.
      size: side of the first kernel.
      deviations: initial deviation of each layer's weights, see `gaussian`.
      relu_last: False leaves the last layer linear.
      dtype: what is computed in.
    """

    names: Sequence[str]
    widths: Sequence[int]
    size: int
    deviations: Sequence[float | str]
    relu_last: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """Maps `[B, H, W, C]` to every layer's output by name, in order; the last is the mlpconv's output."""
        maps = {}
        for i, (name, width) in enumerate(zip(self.names, self.widths, strict=True)):
            x = Conv(width, self.size if i == 0 else 1, gaussian(self.deviations[i]), self.dtype, name=name)(x)
            if self.relu_last or i + 1 < len(self.widths):
                x = nn.relu(x)
            maps[name] = x
        return maps
