"""ZCA whitening against its formula in float64."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from nin_jax.data.preprocess import zca


def pictures(n: int, height: int, width: int, channels: int, seed: int = 0) -> np.ndarray:
    """Smooth pictures of norm 55, whose variances span orders of magnitude as those of photographs do."""
    draw = np.random.default_rng(seed).standard_normal((n, height, width, channels))
    smooth = draw.cumsum(1).cumsum(2) + 0.5 * draw[..., :1].cumsum(1)
    smooth -= smooth.mean((1, 2, 3), keepdims=True)
    smooth *= 55 / np.sqrt((smooth**2).sum((1, 2, 3), keepdims=True))
    return (smooth + 3).astype(np.float32)


def covariance(images: np.ndarray) -> np.ndarray:
    flat = images.reshape(len(images), -1).astype(np.float64)
    flat = flat - flat.mean(0)
    return flat.T @ flat / len(flat)


def reference(train: np.ndarray, images: np.ndarray, eps: float) -> np.ndarray:
    """By the singular values of the data: no covariance, no eigenproblem."""
    flat = train.reshape(len(train), -1).astype(np.float64)
    mean = flat.mean(0)
    _, s, vt = np.linalg.svd((flat - mean) / np.sqrt(len(flat)), full_matrices=True)
    s = np.concatenate([s, np.zeros(len(vt) - len(s))])
    x = images.reshape(len(images), -1) - mean
    return ((x @ vt.T) / np.sqrt(s**2 + eps) @ vt).reshape(images.shape)


@pytest.mark.parametrize(
    ("n", "shape", "eps"), [(600, (6, 5, 3), 0.1), (5000, (4, 4, 3), 0.01), (40, (5, 4, 3), 0.1), (300, (8, 8, 1), 3.0)]
)
def test_equals_the_formula(n, shape, eps):
    """More images than are summed at once; fewer images than pixels; flat images among them."""
    train, test = pictures(n, *shape), pictures(20, *shape, seed=1)
    train[3] = 0
    test[4] = 1.5
    stats = zca.fit(train, eps=eps)
    expected = reference(train, test, eps)
    result = zca.apply(stats, jnp.asarray(test), eps=eps)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert {name: a.dtype for name, a in stats.items()} == {"mean": np.float32, "matrix": np.float32}
    older = stats | {"matrix": stats["matrix"].reshape(len(stats["matrix"]), -1)}
    np.testing.assert_array_equal(zca.apply(older, jnp.asarray(test), eps=eps), result)


@pytest.mark.parametrize("eps", [0.1, 1.0])
def test_the_whitened_covariance_is_c_over_c_plus_eps(eps):
    train = pictures(2000, 5, 5, 3)
    c = covariance(train)
    expected = c @ np.linalg.inv(c + eps * np.eye(len(c)))
    whitened = np.asarray(zca.apply(zca.fit(train, eps=eps), jnp.asarray(train)))
    np.testing.assert_allclose(covariance(whitened), expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(whitened.mean(0), 0, atol=1e-4)


def test_the_matrix_is_symmetric():
    matrix = zca.fit(pictures(200, 4, 4, 3))["matrix"].reshape(48, 48)
    np.testing.assert_allclose(matrix, matrix.T, rtol=0, atol=1e-5 * np.abs(matrix).max())


def test_without_eps_directions_that_no_image_has_are_dropped():
    """30 images of 48 numbers: the covariance of the whitened ones is the projection on what they span, of rank 29."""
    train = pictures(30, 4, 4, 3)
    whitened = np.asarray(zca.apply(zca.fit(train, eps=0.0), jnp.asarray(train)))
    values = np.linalg.eigvalsh(covariance(whitened))
    np.testing.assert_allclose(values, [0] * 19 + [1] * 29, atol=1e-2)


def test_fits_what_a_data_set_holds():
    """uint8 images, as when whitening comes first, give what their float values give."""
    train = np.random.default_rng(0).integers(0, 256, (100, 3, 3, 2)).astype(np.uint8)
    a, b = zca.fit(train), zca.fit(train.astype(np.float32))
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def test_the_form_for_a_tpu_gives_the_same():
    train = pictures(200, 4, 5, 3)
    matrix = zca.fit(train)["matrix"]
    np.testing.assert_allclose(zca.product_on_tpu(train, matrix), zca.product(train, matrix), rtol=1e-5, atol=1e-5)
