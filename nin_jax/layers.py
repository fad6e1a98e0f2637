"""The layers of the paper and of its rivals, as small pure functions and Flax modules. NHWC throughout.

Two things are written differently from the textbook, for speed, with the same mathematics: a 1x1 convolution is a
matrix product over the flattened positions, and a pool is the maximum (or sum) of shifted slices. The other convolutions
are those of `convolution.py`.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nin_jax.convolution import FEWEST_MAPS, biased, convolve, exact, product
from nin_jax.devices.mesh import AXIS

Initializer = Callable[..., jax.Array]

# An evaluation on a CPU computes a few pictures at a time: positions of the maps of a piece, and bytes of all from which on it
# was faster on two cores with 2 MB of cache each.
PIECE, LARGE = (2**13, 2**14), 2**25


def gaussian(deviation: float | str) -> Initializer:
    """Weights from N(0, deviation^2); "he" is sqrt(2 / fan-in), which keeps the size of a ReLU layer's output."""

    def init(key: jax.Array, shape: Sequence[int], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        scale = jnp.sqrt(jnp.asarray(2 / math.prod(shape[:-1]), dtype)) if deviation == "he" else float(deviation)
        # Drawn flat: the same numbers, and XLA compiles them in a fifth of the time.
        return jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape) * scale

    return init


def uniform(limit: float) -> Initializer:
    """Weights from U(-limit, limit)."""

    def init(key: jax.Array, shape: Sequence[int], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, (math.prod(shape),), dtype, -limit, limit).reshape(shape)

    return init


class Conv(nn.Module):
    """Convolution with bias and zero padding: y = x * W + b.

    A 1x1 kernel (a "cccp" layer: cascaded cross channel parametric pooling, paper section 3.1) is computed as the
    matrix product `x.reshape(-1, C_in) @ W`, which a CPU does several times faster than a convolution.

    Attributes:
      features: number of output maps.
      size: side of the square kernel.
      pad: rows and columns of zeros on each side; None, for an odd size: as many as keep the picture's size.
      kernel_init: initializer of the kernel `[size, size, C_in, features]`.
      dtype: what the product is computed in; parameters are kept in float32.
      bias: what the bias `[features]` starts at; None: there is none.
      stride: rows and columns from one position to the next.
      groups: of maps that do not see each other; the kernel is then `[size, size, C_in / groups, features]`.
    """

    features: int
    size: int = 1
    kernel_init: Initializer = gaussian("he")
    dtype: jnp.dtype = jnp.float32
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
        kernel = self.param(
            "kernel", self.kernel_init, (self.size, self.size, x.shape[-1] // self.groups, self.features)
        )
        bias: Any = None
        if self.bias is not None:
            bias = self.param("bias", nn.initializers.constant(self.bias), (self.features,))
        if self.size == 1 and pad == 0 and self.stride == self.groups == 1:
            return biased(product(x.astype(self.dtype), kernel[0, 0].astype(self.dtype)), bias, self.dtype)
        return convolve(x, kernel, pad, self.stride, self.dtype, bias)


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
    winner, (batch, height, width, maps) = residual
    zero = jnp.zeros((), cotangent.dtype)
    reach = -(-size // stride)  # windows that an element may lie in, along an axis
    outs = [n + reach - 1 for n in winner.shape[1:3]]

    def of(row: int, column: int) -> jax.Array:
        """What reaches the elements (row, column), (row, column + stride), ...: from up to `reach`^2 windows each."""
        total = jnp.zeros((batch, *outs, maps), cotangent.dtype)
        for i, j in itertools.product(range(reach), repeat=2):
            if row + i * stride < size and column + j * stride < size:
                part = jnp.where(winner == (row + i * stride) * size + column + j * stride, cotangent, zero)
                total += lax.pad(part, zero, ((0, 0, 0), (i, reach - 1 - i, 0), (j, reach - 1 - j, 0), (0, 0, 0)))
        return total

    # Elements whose rows and columns have the same remainder by `stride` are computed together, then put in their places.
    rows = [jnp.stack([of(row, column) for column in range(stride)], axis=3) for row in range(stride)]
    whole = jnp.stack(rows, axis=2).reshape(batch, outs[0] * stride, outs[1] * stride, maps)
    whole = jnp.pad(
        whole, ((0, 0), *((0, max(0, n - w)) for n, w in zip((height, width), whole.shape[1:3], strict=True)), (0, 0))
    )
    return (whole[:, :height, :width],)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def avg_pool(x: jax.Array, size: int = 3, stride: int = 2, start: int = 0) -> jax.Array:
    """Mean of each window over the elements that lie in the picture; the grid of `max_pool`.

    At the edges the sum is divided by the real count (6 or 4, not 9), as cuda-convnet does. `start` is 0, or negative
    where the first window hangs over the upper and left edge.
    """
    total = functools.reduce(jnp.add, _windows(_shifted(x, start, 0.0), size, stride, 0.0))
    first = [start + np.arange(out) * stride for out in total.shape[1:3]]
    counts = [np.minimum(f + size, n) - np.maximum(f, 0) for n, f in zip(x.shape[1:3], first, strict=True)]
    return total / jnp.asarray(np.outer(*counts)[None, :, :, None], total.dtype)


def _shifted(x: jax.Array, start: int, fill: float) -> jax.Array:
    """x with -`start` rows and columns of `fill` before it, so that the first window starts there."""
    return jnp.pad(x, ((0, 0), (-start, 0), (-start, 0), (0, 0)), constant_values=fill)


def global_average_pool(x: jax.Array) -> jax.Array:
    """Mean of each map, `[B, H, W, C]` to float32 `[B, C]`: the classifier without parameters (paper section 3.2)."""
    return jnp.mean(x.astype(jnp.float32), axis=(1, 2))


# By name, 3x3 of stride 2, as functions of the picture and of where the first window starts.
POOLS: dict[str, Callable[[jax.Array, int], Any]] = {
    "max": lambda x, start: max_pool(_shifted(x, start, -jnp.inf)),
    "avg": lambda x, start: avg_pool(x, start=start),
    # Zeros beyond the edge count, so every sum is divided by 9.
    "avg_padded": lambda x, start: functools.reduce(jnp.add, _windows(_shifted(x, start, 0.0), 3, 2, 0.0)) / 9,
}


class Dropout(nn.Module):
    """Sets each element to 0 with probability `rate` while training, independently for every example.

    "classic" is the form of the paper's own code (cuda-convnet): x * mask in training, x * (1 - rate) in the test.
    "inverted" is the form of Caffe, PyTorch and Flax: x * mask / (1 - rate) in training, x in the test. They are the
    same network, but with a fixed initial deviation the scale of the training activations differs by 1 / (1 - rate).
    "unscaled" is how pylearn2's maxout network drops its input: x * mask in training, x in the test.

    The mask of an example is a function of (the "dropout" key, the layer's place in the model, the example's index in
    the global batch), so it does not depend on how many devices share the batch.

    Attributes:
      rate: probability of a zero, 0 <= rate < 1, to 1/65536.
      kind: "classic", "inverted" or "unscaled".
    """

    rate: float
    kind: Literal["classic", "inverted", "unscaled"] = "inverted"

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
        bits = _random_bits(self.make_rng("dropout"), x.shape, example)
        x = jnp.where(bits < round(keep * 65536), x, jnp.zeros((), x.dtype))
        return x / jnp.asarray(keep, x.dtype) if self.kind == "inverted" else x


def _random_bits(key: jax.Array, shape: tuple[int, ...], example: jax.Array | None) -> jax.Array:
    """uint16 of `shape [B, ...]`: those of an example are a function of the key and of its number in the global batch."""
    example = jnp.arange(shape[0]) if example is None else example
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(example)
    count = math.prod(shape[1:])

    def draw(key: jax.Array) -> jax.Array:
        # `split` gives all 64 bits that the generator makes of a number, `random.bits` 16 of them in the same time. They are
        # drawn flat: XLA compiles that in a fifth of the time.
        words = jax.random.key_data(jax.random.split(key, -(-count // 4)))
        return jnp.concatenate([(words[:, i] >> s).astype(jnp.uint16) for i in (0, 1) for s in (0, 16)])[:count]

    return jax.vmap(draw)(keys).reshape(shape)


def _replicas() -> str | None:
    """The axis over which batch statistics are those of the global batch; None where the step is not mapped."""
    try:
        lax.axis_size(AXIS)
    except NameError:
        return None
    return AXIS


class MLPConv(nn.Module):
    """The paper's mlpconv layer (equation 2): a perceptron slid over the input like a convolution.

        f1 = max(W1 * x + b1, 0),   f2 = max(W2 f1 + b2, 0),   ...,   fn = max(Wn f(n-1) + bn, 0)

    W1 is size x size, the others 1x1 (position by position).

    Attributes:
      names: name of each layer, such as ("conv1", "cccp1", "cccp2").
      widths: number of maps of each layer.
      size, stride, pad, groups: of the first layer, see `Conv`.
      deviations: initial deviation of each layer's weights, see `gaussian`.
      relu_last: False leaves the last layer linear.
      bias_last: what the biases of the last layer start at; the others start at 0.
      batch_norm: normalises what each layer feeds to its ReLU (Ioffe and Szegedy 2015), in place of a bias before it.
      norm_last: False leaves the last layer without.
      dtype: what is computed in; the normalisation in float32.
      pool: name in `POOLS` of the pool that follows, "" for none; `pool_start` is where its first window starts.
    """

    names: Sequence[str]
    widths: Sequence[int]
    size: int
    deviations: Sequence[float | str]
    relu_last: bool = True
    bias_last: float = 0.0
    batch_norm: bool = False
    norm_last: bool = True
    dtype: jnp.dtype = jnp.float32
    stride: int = 1
    pad: int | None = None
    groups: int = 1
    pool: str = ""
    pool_start: int = 0

    def __call__(self, x: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
        """Maps `[B, H, W, C]` to every layer's output by name, and where there is one that of the pool, "pool"."""
        if train or self.is_initializing() or not self.pool:
            return self._layers(x, train)
        # All pictures at once where the convolution theorem does it, which wants many.
        maps = self._layers(x, train, stop=1) if x.shape[-1] * self.stride**2 >= FEWEST_MAPS else {}
        x = maps.get(self.names[0], x)
        positions = math.prod(x.shape[1:3])
        piece = max((n for n in range(1, PIECE[1] // positions + 1) if len(x) % n == 0), default=0)
        if piece * positions < PIECE[0] or 4 * len(x) * positions * max(self.widths) <= LARGE:
            return maps | self._layers(x, train, start=len(maps))
        layers = self.clone(parent=None).apply
        rest: Any = functools.partial(layers, self.variables, train=False, start=len(maps), method="_layers")

        def in_pieces(x: jax.Array) -> Any:
            """A few pictures after the other, whose maps stay in the processor's cache; nothing is kept for a gradient."""
            maps = lax.map(rest, x.reshape(-1, piece, *x.shape[1:]))
            return jax.tree.map(lambda m: m.reshape(-1, *m.shape[2:]), maps)

        return maps | lax.platform_dependent(x, cpu=in_pieces, default=rest)

    @nn.compact
    def _layers(self, x: jax.Array, train: bool, start: int = 0, stop: int | None = None) -> dict[str, jax.Array]:
        """Those from number `start` on, before `stop`; None: to the end, with the pool."""
        maps = {}
        for i, (name, width) in list(enumerate(zip(self.names, self.widths, strict=True)))[start:stop]:
            last = i + 1 == len(self.widths)
            bias = self.bias_last if last else 0.0
            init = gaussian(self.deviations[i])
            normalised = self.batch_norm and (self.norm_last or not last)
            geometry = (self.size, self.stride, self.pad, self.groups) if i == 0 else (1, 1, None, 1)
            size, stride, pad, groups = geometry
            shift = None if normalised else bias
            x = Conv(width, size, init, self.dtype, pad, shift, stride, groups, name=name)(x)
            if normalised:
                norm = nn.BatchNorm(not train, momentum=0.9, axis_name=_replicas(), name=f"{name}_norm")
                x = norm(x.astype(jnp.float32)).astype(self.dtype)
            if self.relu_last or not last:
                x = nn.relu(x)
            maps[name] = x
        if self.pool and stop is None:
            maps["pool"] = POOLS[self.pool](exact(x), self.pool_start)
        return maps


# The layers of the networks that the paper compares itself with.


def maxout(x: jax.Array, pieces: int) -> jax.Array:
    """Largest of `pieces` affine maps, `[..., pieces * F]` to `[..., F]` (paper equation 3, Goodfellow et al. 2013).

        f_k = max over m of (w_km^T x + b_km)

    Piece m of map k is element m * F + k of the last axis, so each column of the weights before it is one filter. The
    gradient goes to the first largest piece.
    """

    def larger(a: jax.Array, b: jax.Array) -> jax.Array:
        # Not jnp.max: its gradient looks for the elements that equal the maximum, and finds none, which is 0 / 0, where XLA
        # computes x a second time with other last bits. A NaN of either is passed on.
        return jnp.where((b > a) | jnp.isnan(b), b, a)

    return functools.reduce(larger, jnp.split(x, pieces, axis=-1))


def response_normalisation(x: jax.Array, size: int = 9, alpha: float = 0.001, beta: float = 0.75) -> jax.Array:
    """Local response normalisation across maps, `[B, H, W, C]` (Krizhevsky, Hinton et al. 2012).

        y_i = x_i / (1 + alpha / N * sum of x_j^2 for j from i - N // 2 to i + N // 2)^beta,   N = `size`, odd

    with alpha divided by N, as in cuda-convnet, Caffe and PyTorch. Maps that there are not count as 0. The sum and the
    power are computed in float32.
    """
    window, edges = (1, 1, 1, size), ((0, 0), (0, 0), (0, 0), (size // 2, size // 2))
    exact = x.astype(jnp.float32)
    squares = lax.reduce_window(jnp.square(exact), 0.0, lax.add, window, (1, 1, 1, 1), edges)
    return (exact * (1 + alpha / size * squares) ** -beta).astype(x.dtype)


class LocalConv(nn.Module):
    """Unshared convolution ("locally connected"): a convolution with a kernel and a bias of its own at every position.

        y[b, i, j, f] = sum over k, l, c of x[b, i + k - pad, j + l - pad, c] * W[k, l, c, (i, j, f)] + b[i, j, f]

    Attributes:
      features: number of output maps.
      size: side of the square kernels.
      pad: rows and columns of zeros on each side.
      kernel_init: initializer of the kernels `[size, size, C_in, H' * W' * features]`, a filter at each index of the
        last axis as in `Conv`; the biases `[H', W', features]` start at 0.
      dtype: what the product is computed in; parameters are kept in float32.
    """

    features: int
    size: int = 3
    pad: int = 1
    kernel_init: Initializer = gaussian("he")
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C_in]` to `[B, H', W', features]`, H' = H + 2 * pad - size + 1."""
        x = jnp.pad(x, ((0, 0), (self.pad, self.pad), (self.pad, self.pad), (0, 0)))
        patches = jnp.concatenate(_windows(x, self.size, 1, 0.0), axis=-1)
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
        parts = _windows(x.astype(jnp.float32), self.size, self.stride, 0.0)
        sums = list(itertools.accumulate(parts))
        total = sums[-1]
        if not train:
            divisor = jnp.where(total == 0, 1.0, total)
            return functools.reduce(jnp.add, [a / divisor * a for a in parts]).astype(x.dtype)
        bits = _random_bits(self.make_rng("dropout"), total.shape, example)
        # Strictly between 0 and the sum, so an element of 0 is never drawn, unless all are: then the number is that of
        # no element.
        mark = total * ((bits.astype(jnp.float32) + 0.5) / 65536)
        number = functools.reduce(jnp.add, [(s <= mark).astype(jnp.uint8) for s in sums])
        drawn = functools.reduce(jnp.add, [jnp.where(number == k, a, 0.0) for k, a in enumerate(parts)])
        # A NaN or an infinity must show in the result, as it does in `max_pool`.
        return jnp.where(jnp.isfinite(total), drawn, lax.stop_gradient(total)).astype(x.dtype)
