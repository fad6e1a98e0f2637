"""Global contrast normalisation against its formula in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nin_jax.data.preprocess import gcn

PAPER = {"scale": 55.0}
SVHN = {"scale": 1.0, "sqrt_bias": 10.0, "use_std": True}


def reference(images: np.ndarray, scale: float, sqrt_bias: float = 0.0, use_std: bool = False) -> np.ndarray:
    out = np.empty(images.shape)
    for i, image in enumerate(images.astype(np.float64)):
        x = image - image.mean()
        d = np.sqrt(sqrt_bias + (np.mean if use_std else np.sum)(x**2)) / scale
        out[i] = x / (1 if d < 1e-8 else d)
    return out


@pytest.mark.parametrize("arguments", [PAPER, SVHN, {"scale": 3.0, "sqrt_bias": 0.5}])
@pytest.mark.parametrize("shape", [(32, 32, 3), (7, 5, 1)])
def test_equals_the_formula(shape, arguments):
    """Noise, bright and dark pictures, one pixel that differs by 1, and a flat picture."""
    images = np.random.default_rng(0).integers(0, 256, (6, *shape)).astype(np.float32)
    images[1] = images[1] / 16 + 239
    images[2] = 200
    images[2, 0, 0, 0] = 201
    images[3] = 77
    result = jax.jit(lambda x: gcn.apply({}, x, **arguments))(images)
    expected = reference(images, **arguments)
    for mine, theirs in zip(result, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-4 * max(np.abs(theirs).max(), 1e-3))


def test_the_papers_setting_gives_norm_55_and_mean_0():
    images = np.random.default_rng(1).integers(0, 256, (5, 32, 32, 3)).astype(np.float32)
    result = np.asarray(gcn.apply(gcn.fit(images), jnp.asarray(images)), np.float64)
    np.testing.assert_allclose(np.sqrt((result**2).sum((1, 2, 3))), 55, rtol=1e-5)
    np.testing.assert_allclose(result.mean((1, 2, 3)), 0, atol=1e-6)


@pytest.mark.parametrize("shape", [(32, 32, 3), (28, 28, 1), (7, 5, 3), (33, 31, 3)])
@pytest.mark.parametrize("unit", [1.0, 1 / 255])
def test_flat_pictures_become_zero(shape, unit):
    """The rounding of a mean must not be taken for contrast and blown up to norm 55."""
    images = jnp.asarray(np.arange(256, dtype=np.float32) * np.float32(unit)).reshape(-1, 1, 1, 1)
    result = gcn.apply({}, jnp.broadcast_to(images, (256, *shape)))
    assert np.abs(result).max() < 1e-6
