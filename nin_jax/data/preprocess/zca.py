"""ZCA whitening (Goodfellow et al. 2013, pylearn2), fitted on the training images (paper section 4.2)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from nin_jax.layers import by_platform

PER_IMAGE = False


def fit(images: np.ndarray, *, eps: float = 0.1) -> dict[str, np.ndarray]:
    """Learns the mean image m and the whitening matrix of the images, in float64.

        C = (X - m)^T (X - m) / N,   C + eps I = V diag(e) V^T,   P = V diag(e^-1/2) V^T

    so the whitened images have the covariance P C P = C (C + eps I)^-1.

    Args:
      images: float32 `[N, H, W, C]`; D = H W C.
      eps: added to every eigenvalue.

    Returns:
      "mean" float32 `[H, W, C]` and "matrix" float32 `[D, H, W, C]`, symmetric as `[D, D]`, which a TPU would bring
      into the order of an image in every update.
    """
    if eps < 0:
        raise ValueError(f"eps of {eps:g}: must be 0 or more")
    flat = images.reshape(len(images), -1)
    mean = flat.mean(axis=0, dtype=np.float64)
    if len(flat) < flat.shape[1]:  # C has at most N directions with variance, and all others the eigenvalue eps
        _, singular, rows = np.linalg.svd(flat - mean, full_matrices=False)
        e, v = singular**2 / len(flat) + eps, rows.T
        root, rest = _inverse_root(e, e[0]), float(_inverse_root(eps, e[0]))
        matrix = (v * (root - rest)) @ v.T
        matrix[np.diag_indices_from(matrix)] += rest
    else:
        covariance = np.zeros((flat.shape[1],) * 2)
        for start in range(0, len(flat), 4096):
            # Products of centred float32 rows, summed in float64: a tenth of the time of float64 products and exact enough.
            rows = (flat[start : start + 4096] - mean).astype(np.float32)
            covariance += rows.T @ rows
        covariance /= len(flat)
        covariance[np.diag_indices_from(covariance)] += eps
        e, v = scipy.linalg.eigh(covariance, overwrite_a=True, check_finite=True, driver="evd")
        matrix = (v * _inverse_root(e, e[-1])) @ v.T
    learned = {"mean": mean, "matrix": matrix}
    return {name: a.astype(np.float32).reshape(*a.shape[1:], *images.shape[1:]) for name, a in learned.items()}


def _inverse_root(e: np.ndarray | float, largest: float) -> np.ndarray:
    """e^-1/2; 0 for directions without any variance, which there are with eps=0 on fewer images than pixels."""
    return np.where(np.asarray(e) > 1e-10 * largest, 1 / np.sqrt(np.maximum(e, 1e-300)), 0)


def apply(stats: dict[str, jax.Array], images: jax.Array, *, eps: float = 0.1) -> jax.Array:
    """Whitens images: (x - m) P. float32 `[B, H, W, C]` in and out."""
    del eps
    return by_platform(images - stats["mean"][None], stats["matrix"], default=product, tpu=product_on_tpu)


def product(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """x P of `x [B, H, W, C]`, at the highest precision."""
    flat = x.reshape(x.shape[0], -1)
    return jnp.dot(flat, matrix.reshape(flat.shape[1], -1), precision=jax.lax.Precision.HIGHEST).reshape(x.shape)


def product_on_tpu(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """The same, with a matrix that keeps the order in which it lies there. A CPU would take longer for an update so."""
    in_order = matrix.reshape(-1, *x.shape[1:])  # files may hold it as [D, D]
    return jnp.tensordot(x.reshape(x.shape[0], -1), in_order, 1, precision=jax.lax.Precision.HIGHEST)
