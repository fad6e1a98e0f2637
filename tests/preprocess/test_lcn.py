"""Local contrast normalisation against SciPy's two-dimensional filters in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.signal

from nin_jax.preprocess import lcn


def reference(images: np.ndarray, blur) -> np.ndarray:
    """c / max(m, s, 1e-4) with the full 7x7 window, picture by picture and channel by channel."""
    line = scipy.signal.windows.gaussian(7, 2.0)
    window = np.outer(line, line) / np.outer(line, line).sum()
    out = np.empty(images.shape)
    for b, c in np.ndindex(len(images), images.shape[-1]):
        x = images[b, :, :, c].astype(np.float64)
        s = np.sqrt(blur(x**2, window))
        out[b, :, :, c] = (x - blur(x, window)) / np.maximum(np.maximum(s.mean(), s), 1e-4)
    return out


@pytest.mark.parametrize(
    "blur",
    [
        lambda x, window: scipy.ndimage.correlate(x, window, mode="constant", cval=0.0),
        lambda x, window: scipy.signal.convolve2d(x, window, mode="same"),
    ],
    ids=["ndimage", "signal"],
)
@pytest.mark.parametrize("shape", [(32, 32, 3), (9, 14, 1), (3, 5, 2)])
def test_equals_the_formula(shape, blur):
    """Contrast-normalised noise, a picture far from 0, an edge, a black one; also smaller than the window."""
    images = np.random.default_rng(0).standard_normal((5, *shape)).astype(np.float32)
    images[1] += 30
    images[2] = 0
    images[2, :, shape[1] // 2 :] = 1
    images[3] = 0
    images[4] *= 1e-6  # a contrast below the floor of 1e-4
    result = jax.jit(lambda x: lcn.apply(lcn.fit(None), x))(images)
    expected = reference(images, blur)
    for mine, theirs in zip(result, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


def test_the_window_sums_to_one():
    """Far from the edges a flat picture has no local contrast left, whatever its brightness."""
    result = lcn.apply({}, jnp.full((1, 20, 20, 1), 100.0))
    assert np.abs(result[0, 3:-3, 3:-3]).max() < 1e-5
