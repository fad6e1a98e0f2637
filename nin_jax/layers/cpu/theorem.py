"""Convolution by the convolution theorem: a matrix product for each frequency. For many images and channels.

A 5x5 convolution of 16x16 images takes a thirteenth of the multiplications. The transforms are small dense products too:
XLA's FFT leaves its results in an order that is slow for matrix products.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nin_jax.layers.cpu import tuning


def convolve(x: jax.Array, kernel: jax.Array, pad: int, groups: int | None = None) -> jax.Array:
    """`[B, H, W, C]` with `[size, size, C, F]`, to `[B, H', W', F]`: products `[B, C] @ [C, F]`, one or three a frequency.

    `groups` is how many groups the frequencies are cut into (None: `tuning.frequency_groups`).
    """
    groups = tuning.frequency_groups(len(x)) if groups is None else groups
    x, width = x.transpose(1, 2, 0, 3), x.shape[2] + 2 * pad - kernel.shape[1] + 1
    y: Any = 0
    for rows, columns in _transforms(*x.shape[:2], kernel.shape[0], pad, groups):
        image, filters = transform(rows[0], columns[0], x), transform(rows[1], columns[1], kernel)
        products = jnp.einsum("pqbc,pqcf->pqbf", image, filters)
        sums: Any = _multiply(columns[2], products.reshape(*products.shape[:2], -1))
        sums = _multiply(rows[2], sums.reshape(rows[2].shape[1], -1))
        y = y + sums.reshape(-1, width, *products.shape[2:])
    return y.transpose(2, 0, 1, 3)


def transform(rows: np.ndarray, columns: np.ndarray, z: jax.Array) -> jax.Array:
    """`[H, W, ...]` to `[M, N, ...]`: `rows` times the first axis, then `columns` times the second.

    `columns` is `[N, W]` for the M rows; or `[N, 2 W]` for the M pairs of rows, and `rows` is `[2 M, H]`.
    """
    rest = z.shape[2:]
    both: Any = _multiply(rows, z.reshape(z.shape[0], -1))
    both = _multiply(columns, both.reshape(-1, columns.shape[1], math.prod(rest)))
    return both.reshape(*both.shape[:2], *rest)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _multiply(matrix: np.ndarray, z: jax.Array) -> jax.Array:
    """`matrix [N, W]` times the last axis but one of `z [..., W, K]`, to `[..., N, K]`."""
    # A batch of products with a copy of the matrix each: without the copies XLA would transpose z.
    return jnp.broadcast_to(jnp.asarray(matrix, z.dtype), (*z.shape[:-2], *matrix.shape)) @ z


# The transposed constant is a constant again, by which XLA multiplies faster than by the transpose that JAX would make.
_multiply.defvjp(
    lambda matrix, z: (_multiply(matrix, z), None), lambda matrix, _, cotangent: (_multiply(matrix.T, cotangent),)
)


Matrices = tuple[np.ndarray, np.ndarray, np.ndarray]


@functools.cache
def _transforms(height: int, width: int, size: int, pad: int, groups: int) -> list[tuple[Matrices, Matrices]]:
    """Pairs of (A, B, C) for rows and (A', B', C') for columns, float64; the correlation of x with k is the sum over them of

        C (((A x A'^T) * (B k B'^T)) C'^T)

    The discrete Fourier transform of the rows of a real image is a real row for each frequency that is its own conjugate,
    and for half of the others, which stand for both, a pair of rows: real and imaginary part. The columns of the former are
    transformed as real numbers; those of the pairs, cut into `groups`, as complex numbers. That takes 484 products for
    16x16 images and a 5x5 kernel, instead of the 676 of two real transforms.
    """
    points, out = _points(height, size, pad)
    real = [f for f in range(points // 2 + 1) if f in (0, points / 2)]
    pairs = [f for f in range(points // 2 + 1) if f not in real]
    parts = []
    for frequencies, paired in ((real, False), *((pairs[i::groups], True) for i in range(groups))):
        if not frequencies:
            continue
        matrices = []
        for sign, steps in ((-1, np.arange(height)), (1, np.arange(size) - pad), (-1, np.arange(out))):
            angles = 2 * np.pi / points * np.outer(frequencies, steps)
            both = np.stack([np.cos(angles), sign * np.sin(angles)], axis=1)
            matrices.append(both.reshape(-1, len(steps)) if paired else both[:, 0])
        a, b, c = matrices
        parts.append(((a, b, c.T * (2 if paired else 1) / points), dft_matrices(width, size, pad, paired)))
    return parts


def _points(length: int, size: int, pad: int) -> tuple[int, int]:
    """Length of a transform, long enough that nothing wraps around into the result; and length of the result."""
    out = length + 2 * pad - size + 1
    return max(length + pad, out - 1 + size - pad), out


def dft_matrices(length: int, size: int, pad: int, complex_input: bool) -> Matrices:
    """float64 A `[M, length]`, B `[M, size]` and C `[length', M]` with C ((A x) * (B k)) the correlation of x with k:

        y[i] = sum over t of k[t] x[i + t - pad],    i from 0 to length' = length + 2 * pad - size + 1

    By the discrete Fourier transform. The product (a + ib)(c + id) = (ac - bd) + i (ad + bc) of a frequency takes three
    real ones (Gauss):

        p = (a + b) c,   q = a (d - c),   r = b (c + d),   real part p - r,   imaginary part p + q

    Where `complex_input`, x, k and y are their real parts followed by their imaginary parts, twice as long. Otherwise half
    of the frequencies are enough.
    """
    points, out = _points(length, size, pad)
    a, b, c = [], [], []
    for frequency in range(points if complex_input else points // 2 + 1):

        def phases(sign: int, steps: np.ndarray, frequency: int = frequency) -> tuple[np.ndarray, np.ndarray]:
            """Rows that give the real and the imaginary part of the sum of x[t] exp(sign i t angle)."""
            angles = 2 * np.pi * frequency / points * steps
            real, imag = np.cos(angles), sign * np.sin(angles)
            return (np.append(real, -imag), np.append(imag, real)) if complex_input else (real, imag)

        x_real, x_imag = phases(-1, np.arange(length))
        k_real, k_imag = phases(1, np.arange(size) - pad)  # correlation: the conjugate
        # A frequency that is its own conjugate counts once, the others twice.
        own_conjugate = not complex_input and frequency in (0, points / 2)
        weight = (1 if complex_input or own_conjugate else 2) / points
        y_real, y_imag = (weight * part for part in phases(-1, np.arange(out)))
        a += [x_real] if own_conjugate else [x_real + x_imag, x_real, x_imag]
        b += [k_real] if own_conjugate else [k_real, k_imag - k_real, k_real + k_imag]
        c += [y_real] if own_conjugate else [y_real + y_imag, y_imag, -y_real]
    return np.array(a), np.array(b), np.array(c).T
