"""Local contrast normalisation against SciPy's and PyTorch's two-dimensional filters in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.signal

from nin_jax import registry
from nin_jax.data import fitted
from nin_jax.data.preprocess import lcn

torch = pytest.importorskip("torch", reason="PyTorch is one of the independent formulas")

LINE = scipy.signal.windows.gaussian(7, 2.0)
WINDOW = np.outer(LINE, LINE) / np.outer(LINE, LINE).sum()


def full_cropped(x: np.ndarray, window: np.ndarray) -> np.ndarray:
    """As pylearn2 has it: all positions in which window and picture touch, less 3 on each side."""
    return scipy.signal.convolve2d(x, window, mode="full")[3:-3, 3:-3]


def reference(images: np.ndarray, blur, channels: int | None = None) -> np.ndarray:
    """c / max(m, s, 1e-4) with the full 7x7 window, picture by picture and channel by channel, the first `channels`."""
    out = images.astype(np.float64)
    for b, c in np.ndindex(len(images), channels or images.shape[-1]):
        x = images[b, :, :, c].astype(np.float64)
        s = np.sqrt(blur(x**2, WINDOW))
        out[b, :, :, c] = (x - blur(x, WINDOW)) / np.maximum(np.maximum(s.mean(), s), 1e-4)
    return out


@pytest.mark.parametrize(
    "blur",
    [
        lambda x, window: scipy.ndimage.correlate(x, window, mode="constant", cval=0.0),
        full_cropped,
    ],
    ids=["ndimage", "signal"],
)
@pytest.mark.parametrize("shape", [(32, 32, 3), (9, 14, 1), (3, 5, 2)])
@pytest.mark.parametrize(
    ("arguments", "channels"), [({}, None), ({"channels": "all"}, None), ({"channels": "first"}, 1)]
)
def test_equals_the_formula(arguments, channels, shape, blur):
    """Contrast-normalised noise, a picture far from 0, an edge, a black one; also smaller than the window."""
    images = np.random.default_rng(0).standard_normal((5, *shape)).astype(np.float32)
    images[1] += 30
    images[2] = 0
    images[2, :, shape[1] // 2 :] = 1
    images[3] = 0
    images[4] *= 1e-6  # a contrast below the floor of 1e-4
    result = jax.jit(lambda x: lcn.apply(lcn.fit(None, **arguments), x, **arguments))(images)
    expected = reference(images, blur, channels)
    for mine, theirs in zip(result, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


def test_the_window_sums_to_one():
    """Far from the edges a flat picture has no local contrast left, whatever its brightness."""
    result = lcn.apply({}, jnp.full((1, 20, 20, 1), 100.0))
    assert np.abs(result[0, 3:-3, 3:-3]).max() < 1e-5


@pytest.mark.parametrize(("channels", "normalised"), [("all", 3), ("first", 1)])
def test_gradient_equals_pytorchs(channels, normalised):
    """Through window, root, mean and both maxima; also where a picture ends and where the contrast is the floor."""
    rng = np.random.default_rng(1)
    images, wanted = rng.standard_normal((2, 3, 12, 9, 3)).astype(np.float32)
    images[0] *= 1e-5
    got = jax.jit(jax.grad(lambda x: jnp.sum(wanted * lcn.apply({}, x, channels=channels))))(jnp.asarray(images))

    x = torch.tensor(images.transpose(0, 3, 1, 2), dtype=torch.float64, requires_grad=True)
    window = torch.tensor(WINDOW).expand(normalised, 1, 7, 7)
    part, others = x[:, :normalised], x[:, normalised:]
    mean, squares = (torch.nn.functional.conv2d(v, window, padding=3, groups=normalised) for v in (part, part**2))
    contrast = squares.sqrt()
    floor = torch.clamp(torch.maximum(contrast, contrast.mean((2, 3), keepdim=True)), min=1e-4)
    (torch.cat([(part - mean) / floor, others], 1) * torch.tensor(wanted.transpose(0, 3, 1, 2))).sum().backward()
    assert x.grad is not None
    expected = x.grad.numpy().transpose(0, 2, 3, 1)
    for mine, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.parametrize(
    ("calls", "bias", "mean", "channels"),
    [
        (("gcn(scale=1, sqrt_bias=10, use_std=True)", "lcn()"), 10, np.mean, 3),
        (("gcn(scale=1)", "lcn(channels='first')"), 0, np.sum, 1),
    ],
    ids=["2013", "2014"],
)
def test_the_two_recipes_of_pylearn2(calls, bias, mean, channels):
    """That of the paper's time, and what the defaults and the misplaced return made of it in 2014."""
    images = np.random.default_rng(2).integers(0, 256, (3, 32, 32, 3), np.uint8)
    images[1] //= 16
    ops = registry.calls("preprocess", calls)
    got = fitted.apply(ops, fitted.fit(ops, images), jnp.asarray(images))
    x = images - images.mean((1, 2, 3), keepdims=True)
    x /= np.sqrt(mean(x**2, (1, 2, 3), keepdims=True) + bias)
    expected = reference(x, full_cropped, channels)
    for c in range(3):
        np.testing.assert_allclose(got[..., c], expected[..., c], rtol=0, atol=1e-4 * np.abs(expected[..., c]).max())
