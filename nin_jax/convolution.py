"""Convolution, as each kind of device does it best. NHWC pictures, HWIO kernels, zeros beyond the edges.

XLA's own runs on accelerators. On a CPU it is made of matrix products, in one of two ways with the same mathematics:
by patches where that is little work, else by the convolution theorem.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

FEWEST_IMAGES, FEWEST_MAPS = 8, 16  # from which on the theorem was faster than patches on two AVX2 cores


def exact(x: jax.Array) -> jax.Array:
    """x, in float32 if it was in bfloat16: for sums and pools, since a CPU takes many times as long if each step is rounded."""
    return x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x


def biased(y: jax.Array, bias: jax.Array | None, dtype: Any) -> jax.Array:
    """`y [..., F] + bias [F]` in `dtype`; None adds nothing."""
    if bias is not None:
        y = exact(y)  # and so is the sum over all positions that is the bias' gradient
        y = y + bias.astype(y.dtype).reshape((1,) * (y.ndim - 1) + bias.shape)
    return y.astype(dtype)


def convolve(
    x: jax.Array, kernel: jax.Array, pad: int, stride: int = 1, dtype: Any = None, bias: jax.Array | None = None
) -> jax.Array:
    """Convolution of `[B, H, W, C_in]` with `[size, size, C, F]`, `pad` rows and columns of zeros a side, and `bias [F]`.

        y[b, i, j, f] = bias[f] + sum over k, l, c of x[b, stride i + k - pad, stride j + l - pad, c] * kernel[k, l, c, f]

    Where the kernel has C_in / groups maps, the maps of x and those of y are cut into as many groups, and each group of
    y sees its own of x alone. Computed in `dtype` (None: that of x), on a CPU at least in float32.

    Returns `[B, H', W', F]` in `dtype`, H' = floor((H + 2 * pad - size) / stride) + 1.
    """
    dtype = x.dtype if dtype is None else dtype

    def on_cpu(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
        # bfloat16 is for storage here: transforms in it would be wrong by per cents, and few CPUs multiply in it.
        wide = jnp.float32 if dtype == jnp.bfloat16 else dtype
        groups = x.shape[-1] // kernel.shape[2]
        biases = [None] * groups if bias is None else jnp.split(bias.astype(wide), groups)
        parts = zip(
            jnp.split(x.astype(wide), groups, -1), jnp.split(kernel.astype(wide), groups, -1), biases, strict=True
        )
        return jnp.concatenate([_by_products(*part, pad, stride) for part in parts], -1).astype(dtype)

    def elsewhere(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
        return biased(_by_xla(x.astype(dtype), kernel.astype(dtype), pad, stride), bias, dtype)

    return lax.platform_dependent(x, kernel, bias, cpu=on_cpu, default=elsewhere)


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`x [..., C] @ kernel [C, F]`, a 1x1 convolution, to `[..., F]`."""

    def on_cpu(x: jax.Array, kernel: jax.Array) -> jax.Array:
        y: Any = _over_rows(x.reshape(-1, x.shape[-1]), kernel)
        return y.reshape(*x.shape[:-1], -1)

    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=jnp.matmul)


@jax.custom_vjp
def _over_rows(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`x [M, C] @ kernel [C, F]` for a large M: XLA is faster with the sums over M, the gradient of the kernel, in halves."""
    return x @ kernel


def _in_halves(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`x [2, M / 2, C] @ kernel [C, F]`."""
    # Halves here too, with a kernel each: else XLA would make x a second time in the other shape.
    return x @ jnp.broadcast_to(kernel, (x.shape[0], *kernel.shape))


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    halves = x.reshape(2 if len(x) % 2 == 0 else 1, -1, x.shape[1])
    return _in_halves(halves, kernel).reshape(len(x), -1), (halves, kernel)


def _backward(residual: tuple[jax.Array, jax.Array], cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = residual
    y = cotangent.reshape(*x.shape[:2], -1)
    # XLA is faster where the result has more columns than rows.
    a, b = (x, y) if x.shape[-1] <= y.shape[-1] else (y, x)
    wide = jnp.float32 if x.dtype == jnp.bfloat16 else x.dtype
    sums = jnp.einsum("nmc,nmf->ncf", a, b, preferred_element_type=wide).sum(0)
    gradient = _in_halves(y, kernel.T).reshape(-1, x.shape[-1])
    return gradient, (sums if a is x else sums.T).astype(kernel.dtype)


_over_rows.defvjp(_forward, _backward)


def _by_xla(x: jax.Array, kernel: jax.Array, pad: int, stride: int = 1) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] // kernel.shape[2],
    )


def _by_products(x: jax.Array, kernel: jax.Array, bias: jax.Array | None, pad: int, stride: int) -> jax.Array:
    """Of one group, in the cheaper way."""
    if stride > 1:
        x, kernel = _folded(x, kernel, pad, stride)
        pad = 0
    if x.shape[0] >= FEWEST_IMAGES and x.shape[-1] >= FEWEST_MAPS:
        return biased(_by_theorem(x, kernel, pad), bias, x.dtype)
    return _by_patches(x, kernel, pad, bias)


def _folded(x: jax.Array, kernel: jax.Array, pad: int, stride: int) -> tuple[jax.Array, jax.Array]:
    """The same convolution of stride 1: each square of stride x stride elements is one with stride^2 times the maps.

    The kernel gets zeros at its end, to a multiple of the stride.
    """
    size, maps = kernel.shape[0], kernel.shape[-1]
    folded = -(-size // stride)
    outs = [(n + 2 * pad - size) // stride + 1 for n in x.shape[1:3]]
    lengths = [(out - 1 + folded) * stride for out in outs]
    edges = [(pad, max(0, length - n - pad)) for length, n in zip(lengths, x.shape[1:3], strict=True)]
    x = jnp.pad(x, ((0, 0), *edges, (0, 0)))[:, : lengths[0], : lengths[1]]
    kernel = jnp.pad(kernel, (*[(0, folded * stride - size)] * 2, (0, 0), (0, 0)))
    x = x.reshape(x.shape[0], lengths[0] // stride, stride, lengths[1] // stride, stride, -1)
    kernel = kernel.reshape(folded, stride, folded, stride, -1, maps)
    x, kernel = x.transpose(0, 1, 3, 2, 4, 5), kernel.transpose(0, 2, 1, 3, 4, 5)
    return x.reshape(*x.shape[:3], -1), kernel.reshape(folded, folded, -1, maps)


def _by_patches(x: jax.Array, kernel: jax.Array, pad: int, bias: jax.Array | None = None) -> jax.Array:
    """One product: all patches `[B H' W', size^2 C_in]` times the kernel."""
    size, maps = kernel.shape[0], kernel.shape[-1]
    x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    height, width = (n - size + 1 for n in x.shape[1:3])
    # Row by row of the window: fewer and longer pieces than its elements are.
    rows = jnp.concatenate([x[:, :, j : j + width] for j in range(size)], axis=-1)
    parts, kernel = [rows[:, i : i + height] for i in range(size)], kernel.reshape(-1, maps)
    if bias is not None:
        # As the weight of a map of ones: its gradient comes with the kernel's, and needs no sum of its own.
        parts.append(jnp.ones((len(x), height, width, 1), x.dtype))
        kernel = jnp.concatenate([kernel, bias.reshape(1, maps)])
    return product(jnp.concatenate(parts, axis=-1), kernel)


def _by_theorem(x: jax.Array, kernel: jax.Array, pad: int, groups: int | None = None) -> jax.Array:
    """A product `[B, C_in] @ [C_in, C]` for each frequency of the picture, or three; the transforms are products too.

    A 5x5 convolution of 16x16 pictures takes a thirteenth of the multiplications.
    """
    if groups is None:
        # XLA of jax 0.10 does the smaller products of a group of frequencies on one core, and groups side by side.
        groups = 3 if len(x) < 256 and jax.__version_info__ < (0, 12) else 1
    x, width = x.transpose(1, 2, 0, 3), x.shape[2] + 2 * pad - kernel.shape[1] + 1
    y: Any = 0
    for rows, columns in _bilinear(*x.shape[:2], kernel.shape[0], pad, groups):
        pictures, filters = (_transform(rows[i], columns[i], z) for i, z in enumerate((x, kernel)))
        products = jnp.einsum("pqbc,pqcf->pqbf", pictures, filters)
        sums: Any = _times(columns[2], products.reshape(*products.shape[:2], -1))
        sums = _times(rows[2], sums.reshape(rows[2].shape[1], -1))
        y = y + sums.reshape(-1, width, *products.shape[2:])
    return y.transpose(2, 0, 1, 3)


def _transform(rows: np.ndarray, columns: np.ndarray, z: jax.Array) -> jax.Array:
    """`[H, W, ...]` to `[M, N, ...]`: `rows` times the first axis, then `columns` times the second.

    `columns` is `[N, W]` for the M rows; or `[N, 2 W]` for the M pairs, and `rows` is `[2 M, H]`.
    """
    rest = z.shape[2:]
    both: Any = _times(rows, z.reshape(z.shape[0], -1))
    both = _times(columns, both.reshape(-1, columns.shape[1], math.prod(rest)))
    return both.reshape(*both.shape[:2], *rest)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _times(matrix: np.ndarray, z: jax.Array) -> jax.Array:
    """`matrix [N, W]` times the last but one axis of `z [..., W, K]`, to `[..., N, K]`."""
    # The same matrix for each is a batch of products; without the copies XLA would transpose z.
    return jnp.broadcast_to(jnp.asarray(matrix, z.dtype), (*z.shape[:-2], *matrix.shape)) @ z


# The transpose of a constant is a constant again, and XLA does that product faster than the one that JAX would make of it.
_times.defvjp(lambda matrix, z: (_times(matrix, z), None), lambda matrix, _, cotangent: (_times(matrix.T, cotangent),))


Matrices = tuple[np.ndarray, np.ndarray, np.ndarray]


@functools.cache
def _bilinear(height: int, width: int, size: int, pad: int, groups: int) -> list[tuple[Matrices, Matrices]]:
    """Pairs of (A, B, C) for rows and (A', B', C') for columns, float64; the correlation of x with k is the sum over them of

        C (((A x A'^T) * (B k B'^T)) C'^T)

    The discrete Fourier transform of the rows of a real picture gives one real row where the frequency is its own conjugate,
    and pairs of rows, real and imaginary part, for half of the others, which stand for both. The columns of the first are
    transformed as real numbers, those of the pairs, cut into `groups`, as complex ones.
    """
    points, out = _points(height, size, pad)
    alone = [f for f in range(points // 2 + 1) if f in (0, points / 2)]
    pairs = [f for f in range(points // 2 + 1) if f not in alone]
    parts = []
    for chosen, paired in ((alone, False), *((pairs[i::groups], True) for i in range(groups))):
        if not chosen:
            continue
        matrices = []
        for sign, steps in ((-1, np.arange(height)), (1, np.arange(size) - pad), (-1, np.arange(out))):
            angles = 2 * np.pi / points * np.outer(chosen, steps)
            both = np.stack([np.cos(angles), sign * np.sin(angles)], axis=1)
            matrices.append(both.reshape(-1, len(steps)) if paired else both[:, 0])
        a, b, c = matrices
        parts.append(((a, b, c.T * (2 if paired else 1) / points), _products(width, size, pad, paired)))
    return parts


def _points(length: int, size: int, pad: int) -> tuple[int, int]:
    """Of a transform so long that nothing which wraps around reaches the result, and the length of that."""
    out = length + 2 * pad - size + 1
    return max(length + pad, out - 1 + size - pad), out


def _products(length: int, size: int, pad: int, complex_input: bool) -> Matrices:
    """float64 A `[M, length]`, B `[M, size]` and C `[length', M]` with C ((A x) * (B k)) the correlation of x with k:

        y[i] = sum over t of k[t] x[i + t - pad],    i from 0 to length' = length + 2 * pad - size + 1

    By the discrete Fourier transform. The product (a + ib)(c + id) = (ac - bd) + i (ad + bc) of a frequency takes three
    real ones, as Gauss found:

        p = (a + b) c,   q = a (d - c),   r = b (c + d),   real part p - r,   imaginary part p + q

    Where `complex_input`, x, k and y are their real parts, then their imaginary parts, twice as long. Else half of the
    frequencies do.
    """
    points, out = _points(length, size, pad)
    a, b, c = [], [], []
    for frequency in range(points if complex_input else points // 2 + 1):

        def phases(sign: int, steps: np.ndarray, frequency: int = frequency) -> tuple[np.ndarray, np.ndarray]:
            """What gives the real and the imaginary part of the sum of x[t] exp(sign i t angle)."""
            angles = 2 * np.pi * frequency / points * steps
            real, imag = np.cos(angles), sign * np.sin(angles)
            return (np.append(real, -imag), np.append(imag, real)) if complex_input else (real, imag)

        x_real, x_imag = phases(-1, np.arange(length))
        k_real, k_imag = phases(1, np.arange(size) - pad)  # correlation: the conjugate
        # Its own conjugate: it counts once, the others twice.
        real = not complex_input and frequency in (0, points / 2)
        weight = (1 if complex_input or real else 2) / points
        y_real, y_imag = (weight * part for part in phases(-1, np.arange(out)))
        a += [x_real] if real else [x_real + x_imag, x_real, x_imag]
        b += [k_real] if real else [k_real, k_imag - k_real, k_real + k_imag]
        c += [y_real] if real else [y_real + y_imag, y_imag, -y_real]
    return np.array(a), np.array(b), np.array(c).T
