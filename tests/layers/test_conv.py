"""Every way of convolving against SciPy's correlation in float64, values and gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate

from nin_jax import convolution
from nin_jax.convolution import FEWEST_IMAGES, FEWEST_MAPS, convolve


def expected(x: np.ndarray, kernel: np.ndarray, pad: int) -> np.ndarray:
    """The correlation, picture by picture and map by map."""
    x = np.pad(x.astype(np.float64), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    kernel = kernel.astype(np.float64)
    maps = [[correlate(one, kernel[..., f], "valid")[..., 0] for f in range(kernel.shape[-1])] for one in x]
    return np.stack([np.stack(m, axis=-1) for m in maps])


CASES = [
    # batch, height, width, maps in, maps out, size, pad: few and many of both, odd and even lengths, all kinds of edges
    (FEWEST_IMAGES, 8, 8, FEWEST_MAPS, 3, 3, 1),
    (FEWEST_IMAGES, 7, 10, FEWEST_MAPS, 2, 5, 2),
    (FEWEST_IMAGES, 9, 6, FEWEST_MAPS, 2, 3, 0),
    (FEWEST_IMAGES, 4, 5, FEWEST_MAPS, 2, 3, 3),
    (FEWEST_IMAGES, 5, 5, FEWEST_MAPS, 2, 5, 0),
    (FEWEST_IMAGES, 6, 7, FEWEST_MAPS, 2, 4, 1),
    (FEWEST_IMAGES, 3, 3, FEWEST_MAPS, 2, 1, 2),
    (FEWEST_IMAGES, 1, 9, FEWEST_MAPS, 2, 3, 1),
    (FEWEST_IMAGES - 1, 7, 6, FEWEST_MAPS, 2, 5, 2),
    (FEWEST_IMAGES, 7, 6, FEWEST_MAPS - 1, 2, 3, 1),
    (2, 6, 5, 3, 4, 4, 2),
    (1, 3, 3, 1, 1, 3, 0),
]


def draw(batch, height, width, maps, features, size):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, height, width, maps), np.float32)
    return x, rng.standard_normal((size, size, maps, features), np.float32)


@pytest.mark.parametrize("way", [convolve, convolution._by_patches, convolution._by_theorem, convolution._by_xla])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_scipys_correlation(way, case):
    *shape, pad = case
    x, kernel = draw(*shape)
    y = jax.jit(way, static_argnums=2)(x, kernel, pad)
    truth = expected(x, kernel, pad)
    assert y.shape == truth.shape
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, truth, rtol=0, atol=3e-6 * np.abs(truth).max())


STRIDED = [
    # batch, height, width, maps in, maps out, size, pad, stride, groups
    (2, 23, 28, 3, 4, 11, 0, 4, 1),
    (FEWEST_IMAGES, 12, 13, 3, 4, 7, 1, 2, 1),
    (FEWEST_IMAGES, 11, 12, FEWEST_MAPS, 4, 5, 0, 2, 1),
    (FEWEST_IMAGES, 9, 9, 2, 3, 1, 0, 3, 1),
    (FEWEST_IMAGES, 6, 7, 2 * FEWEST_MAPS, 6, 3, 1, 1, 2),
    (2, 9, 8, 6, 9, 3, 2, 2, 3),
    (1, 4, 4, 2, 2, 2, 0, 3, 1),
]


@pytest.mark.parametrize("way", [convolve, convolution._by_xla])
@pytest.mark.parametrize("case", STRIDED, ids=str)
def test_strides_and_groups_equal_scipys_correlation(way, case):
    batch, height, width, maps, features, size, pad, stride, groups = case
    x, _ = draw(batch, height, width, maps, 1, size)
    _, kernel = draw(1, 1, 1, maps // groups, features, size)
    parts = zip(np.split(x, groups, -1), np.split(kernel, groups, -1), strict=True)
    truth = np.concatenate([expected(a, k, pad)[:, ::stride, ::stride] for a, k in parts], -1)
    y, pull = jax.vjp(lambda x, k: way(x, k, pad, stride), x, kernel)
    assert y.shape == truth.shape
    np.testing.assert_allclose(y, truth, rtol=0, atol=3e-6 * np.abs(truth).max())
    by_x, by_kernel = pull(y)  # <y, conv(x, k)> is |y|^2, by x in the direction of x and by k in that of k
    for gradient, at in ((by_x, x), (by_kernel, kernel)):
        np.testing.assert_allclose(np.vdot(gradient, at), np.vdot(truth, truth), rtol=1e-5)


@pytest.mark.parametrize("platform", ["cpu", "default"])
@pytest.mark.parametrize("case", [*STRIDED, (3, 7, 6, 5, 4, 3, 1, 1, 1)], ids=str)
def test_a_bias_is_added_to_each_position(case, platform, monkeypatch):
    """Its gradient is the sum over them, that of the rest is as without, in whichever way the convolution is done."""
    monkeypatch.setattr(convolution.lax, "platform_dependent", lambda *arrays, **ways: ways[platform](*arrays))
    batch, height, width, maps, features, size, pad, stride, groups = case
    x, kernel = draw(batch, height, width, maps // groups, features, size)
    x, bias = np.concatenate([x] * groups, -1), np.linspace(-2, 1, features, dtype=np.float32)
    y, pull = jax.vjp(lambda x, k, b: convolve(x, k, pad, stride, bias=b), x, kernel, bias)
    plain, pull_plain = jax.vjp(lambda x, k: convolve(x, k, pad, stride), x, kernel)
    np.testing.assert_allclose(y, plain + bias.reshape(1, 1, 1, -1), rtol=0, atol=1e-6 * np.abs(plain).max())
    g = np.random.default_rng(2).standard_normal(y.shape, np.float32)
    *gradients, by_bias = pull(g)
    np.testing.assert_allclose(by_bias, g.sum((0, 1, 2)), rtol=0, atol=1e-6 * np.abs(g).sum((0, 1, 2)).max())
    for gradient, reference in zip(gradients, pull_plain(g), strict=True):
        np.testing.assert_allclose(gradient, reference, rtol=0, atol=1e-6 * np.abs(reference).max())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_are_those_of_a_linear_map(case):
    """<g, conv(x, k)> is linear in each, so its gradient by x in direction e is <g, conv(e, k)>, and so for k."""
    *shape, pad = case
    x, kernel = draw(*shape)
    rng = np.random.default_rng(1)
    g = rng.standard_normal(expected(x, kernel, pad).shape, np.float32)
    by_x, by_kernel = jax.jit(lambda x, k, g: jax.vjp(lambda x, k: convolve(x, k, pad), x, k)[1](g))(x, kernel, g)
    for _ in range(3):
        e, d = rng.standard_normal(x.shape, np.float32), rng.standard_normal(kernel.shape, np.float32)
        for gradient, direction, moved in ((by_x, e, expected(e, kernel, pad)), (by_kernel, d, expected(x, d, pad))):
            truth = np.vdot(g.astype(np.float64), moved)
            scale = np.linalg.norm(g) * np.linalg.norm(moved)
            np.testing.assert_allclose(np.vdot(np.float64(gradient), direction), truth, rtol=0, atol=1e-6 * scale)


@pytest.mark.parametrize(
    ("rows", "maps", "features"), [((6, 4), 3, 5), ((3, 5), 5, 3), ((7,), 4, 4), ((2, 1, 1), 1, 2)]
)
def test_a_product_and_its_gradients_equal_numpys(rows, maps, features):
    """Even and odd numbers of rows, more maps and fewer than before, whether a gradient is taken or not."""
    rng = np.random.default_rng(0)
    shapes = (*rows, maps), (maps, features), (*rows, features)
    x, kernel, cotangent = (rng.standard_normal(shape, np.float32) for shape in shapes)
    y, back = jax.vjp(jax.jit(convolution.product), x, kernel)
    for values in (y, convolution.product(jnp.asarray(x), jnp.asarray(kernel))):
        np.testing.assert_allclose(values, np.tensordot(x, kernel, 1), atol=1e-5)
    axes = tuple(range(len(rows)))
    gradients = np.tensordot(cotangent, kernel, ([-1], [1])), np.tensordot(x, cotangent, (axes, axes))
    for mine, theirs in zip(back(cotangent), gradients, strict=True):
        assert mine.shape == theirs.shape
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_of_a_product_in_bfloat16_the_kernels_gradient_is_summed_in_float32():
    """257 and 258 are 515, which is 516 in bfloat16; each rounded first they would be 256 and 258, and their sum 512."""
    x = jnp.ones((514, 1), jnp.bfloat16).at[-1].set(2)
    _, back = jax.vjp(convolution.product, x, jnp.ones((1, 1), jnp.bfloat16))
    assert back(jnp.ones_like(x))[1].item() == 516


@pytest.mark.parametrize("groups", [1, 2, 5])
def test_groups_of_frequencies_give_the_same(groups):
    """More groups than there are pairs of rows too."""
    x, kernel = draw(FEWEST_IMAGES, 7, 6, FEWEST_MAPS, 2, 3)
    y = jax.jit(convolution._by_theorem, static_argnums=(2, 3))(x, kernel, 1, groups)
    truth = expected(x, kernel, 1)
    np.testing.assert_allclose(y, truth, rtol=0, atol=3e-6 * np.abs(truth).max())


@pytest.mark.parametrize("bias", [None, (0.1, -2.0, 30.0, 0.0)])
@pytest.mark.parametrize("images", [FEWEST_IMAGES, 1])
def test_bfloat16_is_rounded_once(images, bias):
    """On a CPU products and sums are float32, so the result is that of float32, rounded."""
    x, kernel = (jnp.asarray(a, jnp.bfloat16) for a in draw(images, 6, 6, FEWEST_MAPS, 4, 3))
    bias = None if bias is None else jnp.asarray(bias, jnp.float32)
    y = convolve(x, kernel, 1, bias=bias)
    exact = convolve(x.astype(jnp.float32), kernel.astype(jnp.float32), 1, bias=bias)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.float32(y), np.float32(exact.astype(jnp.bfloat16)))


def test_computed_in_bfloat16_accelerators_round_the_input_and_a_cpu_does_not():
    x, kernel = (jnp.asarray(a) for a in draw(FEWEST_IMAGES, 6, 6, FEWEST_MAPS, 4, 3))
    f = jax.jit(lambda x, k: convolve(x, k, 1, dtype=jnp.bfloat16))
    np.testing.assert_array_equal(f(x, kernel), convolve(x, kernel, 1).astype(jnp.bfloat16))
    text = f.trace(x, kernel).lower(lowering_platforms=("cuda",)).as_text()
    (line,) = (line for line in text.splitlines() if "stablehlo.convolution" in line)
    assert "f32" not in line
    assert line.count("bf16") == 3


def test_a_nan_shows():
    x, kernel = draw(FEWEST_IMAGES, 6, 6, FEWEST_MAPS, 4, 3)
    x[3, 2, 1, 0] = np.nan
    y = np.asarray(convolve(x, kernel, 1))
    assert np.isnan(y[3]).any()
    assert np.isfinite(np.delete(y, 3, axis=0)).all()


@pytest.mark.parametrize("images", [FEWEST_IMAGES, 1])
def test_accelerators_get_xlas_convolution_and_a_cpu_products(images):
    """As lowered, with both gradients: what is not for the platform has left nothing to compute."""
    x, kernel = draw(images, 6, 6, FEWEST_MAPS, 4, 3)
    f = jax.jit(lambda x, k: jax.vjp(lambda x, k: convolve(x, k, 1), x, k)[1](jnp.ones((images, 6, 6, 4))))
    for platform, convolutions in (("cuda", 2), ("tpu", 2), ("cpu", 0)):
        text = f.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
        assert text.count("stablehlo.convolution") == convolutions
        assert ("dot_general" in text) == (platform == "cpu")
