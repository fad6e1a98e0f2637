"""Every way of convolving against SciPy's correlation in float64, values and gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate

from nin_jax.layers import Conv, by_platform, convolve, cpu, cuda, gaussian, portable
from nin_jax.layers.conv import cuda_form, textbook
from nin_jax.layers.cpu import patches, theorem
from nin_jax.layers.cpu.products import matmul, to_bfloat16
from nin_jax.layers.cpu.tuning import THEOREM_CHANNELS, THEOREM_IMAGES

WAYS = {
    "chosen": lambda x, k, pad: convolve(x, k, pad=pad),
    "textbook": lambda x, k, pad: textbook(x, k, None, pad=pad, stride=1, dtype=x.dtype),
    "patches": patches.convolve,
    "theorem": theorem.convolve,
    "patches of a GPU": lambda x, k, pad: cuda.by_patches(x, k, None, pad=pad, dtype=x.dtype),
}


def expected(x: np.ndarray, kernel: np.ndarray, pad: int) -> np.ndarray:
    """The correlation, image by image and map by map."""
    x = np.pad(x.astype(np.float64), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    kernel = kernel.astype(np.float64)
    maps = [[correlate(one, kernel[..., f], "valid")[..., 0] for f in range(kernel.shape[-1])] for one in x]
    return np.stack([np.stack(m, axis=-1) for m in maps])


CASES = [
    # batch, height, width, maps in, maps out, size, pad: few and many of both, odd and even lengths, all kinds of edges
    (THEOREM_IMAGES, 8, 8, THEOREM_CHANNELS, 3, 3, 1),
    (THEOREM_IMAGES, 7, 10, THEOREM_CHANNELS, 2, 5, 2),
    (THEOREM_IMAGES, 9, 6, THEOREM_CHANNELS, 2, 3, 0),
    (THEOREM_IMAGES, 4, 5, THEOREM_CHANNELS, 2, 3, 3),
    (THEOREM_IMAGES, 5, 5, THEOREM_CHANNELS, 2, 5, 0),
    (THEOREM_IMAGES, 6, 7, THEOREM_CHANNELS, 2, 4, 1),
    (THEOREM_IMAGES, 3, 3, THEOREM_CHANNELS, 2, 1, 2),
    (THEOREM_IMAGES, 1, 9, THEOREM_CHANNELS, 2, 3, 1),
    (THEOREM_IMAGES - 1, 7, 6, THEOREM_CHANNELS, 2, 5, 2),
    (THEOREM_IMAGES, 7, 6, THEOREM_CHANNELS - 1, 2, 3, 1),
    (2, 6, 5, 3, 4, 4, 2),
    (1, 3, 3, 1, 1, 3, 0),
]


def draw(batch, height, width, maps, features, size):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, height, width, maps), np.float32)
    return x, rng.standard_normal((size, size, maps, features), np.float32)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_scipys_correlation(way, case):
    *shape, pad = case
    x, kernel = draw(*shape)
    y = jax.jit(WAYS[way], static_argnums=2)(x, kernel, pad)
    truth = expected(x, kernel, pad)
    assert y.shape == truth.shape
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, truth, rtol=0, atol=3e-6 * np.abs(truth).max())


STRIDED = [
    # batch, height, width, maps in, maps out, size, pad, stride, groups
    (2, 23, 28, 3, 4, 11, 0, 4, 1),
    (THEOREM_IMAGES, 12, 13, 3, 4, 7, 1, 2, 1),
    (THEOREM_IMAGES, 11, 12, THEOREM_CHANNELS, 4, 5, 0, 2, 1),
    (THEOREM_IMAGES, 9, 9, 2, 3, 1, 0, 3, 1),
    (THEOREM_IMAGES, 6, 7, 2 * THEOREM_CHANNELS, 6, 3, 1, 1, 2),
    (2, 9, 8, 6, 9, 3, 2, 2, 3),
    (1, 4, 4, 2, 2, 2, 0, 3, 1),
]


@pytest.mark.parametrize("way", [cpu.convolve, textbook])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("case", [*STRIDED, (3, 7, 6, 5, 4, 3, 1, 1, 1), (2, 3, 5, 7, 4, 1, 0, 1, 1)], ids=str)
def test_strides_groups_and_bias_equal_scipys_correlation(case, biased, way):
    batch, height, width, maps, features, size, pad, stride, groups = case
    x, _ = draw(batch, height, width, maps, 1, size)
    _, kernel = draw(1, 1, 1, maps // groups, features, size)
    bias = np.linspace(-2, 1, features, dtype=np.float32) if biased else None
    parts = zip(np.split(x, groups, -1), np.split(kernel, groups, -1), strict=True)
    linear = np.concatenate([expected(a, k, pad)[:, ::stride, ::stride] for a, k in parts], -1)
    truth = linear if bias is None else linear + bias
    g = np.random.default_rng(2).standard_normal(truth.shape, np.float32)

    @jax.jit
    def both(*arrays):
        y, pull = jax.vjp(lambda x, k, b: way(x, k, b, pad=pad, stride=stride, dtype=jnp.float32), *arrays)
        # Where no gradient is wanted, there may be another form.
        alone = way(*arrays, pad=pad, stride=stride, dtype=jnp.float32)
        return alone, y, pull(g)

    alone, y, (by_x, by_kernel, by_bias) = both(x, kernel, bias)
    for form in (alone, y):
        assert form.shape == truth.shape
        np.testing.assert_allclose(form, truth, rtol=0, atol=3e-6 * np.abs(truth).max())
    # <g, conv(x, k)> is linear in x and in k
    scale = np.linalg.norm(g) * np.linalg.norm(linear)
    for gradient, at in ((by_x, x), (by_kernel, kernel)):
        np.testing.assert_allclose(np.vdot(np.float64(gradient), at), np.vdot(g, linear), rtol=0, atol=1e-6 * scale)
    if biased:
        np.testing.assert_allclose(by_bias, g.sum((0, 1, 2)), rtol=0, atol=1e-6 * np.abs(g).sum((0, 1, 2)).max())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_are_those_of_a_linear_map(case):
    """<g, conv(x, k)> is linear in each, so its gradient by x in direction e is <g, conv(e, k)>, and so for k."""
    *shape, pad = case
    x, kernel = draw(*shape)
    rng = np.random.default_rng(1)
    g = rng.standard_normal(expected(x, kernel, pad).shape, np.float32)
    by_x, by_kernel = jax.jit(lambda x, k, g: jax.vjp(lambda x, k: convolve(x, k, pad=pad), x, k)[1](g))(x, kernel, g)
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
    y, back = jax.vjp(jax.jit(matmul), x, kernel)
    for values in (y, matmul(jnp.asarray(x), jnp.asarray(kernel))):
        np.testing.assert_allclose(values, np.tensordot(x, kernel, 1), atol=1e-5)
    axes = tuple(range(len(rows)))
    gradients = np.tensordot(cotangent, kernel, ([-1], [1])), np.tensordot(x, cotangent, (axes, axes))
    for mine, theirs in zip(back(cotangent), gradients, strict=True):
        assert mine.shape == theirs.shape
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_of_a_product_in_bfloat16_the_kernels_gradient_is_summed_in_float32():
    """257 and 258 are 515, which is 516 in bfloat16; each rounded first they would be 256 and 258, and their sum 512."""
    x = jnp.ones((514, 1), jnp.bfloat16).at[-1].set(2)
    _, back = jax.vjp(matmul, x, jnp.ones((1, 1), jnp.bfloat16))
    assert back(jnp.ones_like(x))[1].item() == 516


@pytest.mark.parametrize("groups", [1, 2, 5])
def test_groups_of_frequencies_give_the_same(groups):
    """More groups than there are pairs of rows too."""
    x, kernel = draw(THEOREM_IMAGES, 7, 6, THEOREM_CHANNELS, 2, 3)
    y = jax.jit(theorem.convolve, static_argnums=(2, 3))(x, kernel, 1, groups)
    truth = expected(x, kernel, 1)
    np.testing.assert_allclose(y, truth, rtol=0, atol=3e-6 * np.abs(truth).max())


@pytest.mark.parametrize("bias", [0.0, (0.1, -2.0, 30.0, 0.0)])
@pytest.mark.parametrize("images", [THEOREM_IMAGES, 1])
def test_bfloat16_is_rounded_once(images, bias):
    """On a CPU products and sums are float32: the result is that of float64, to half a unit in the last of 8 bits."""
    x, kernel = (jnp.asarray(a, jnp.bfloat16) for a in draw(images, 6, 6, THEOREM_CHANNELS, 4, 3))
    truth = expected(np.float32(x), np.float32(kernel), 1) + bias
    y = convolve(x, kernel, jnp.broadcast_to(jnp.float32(bias), (4,)), pad=1)
    assert y.dtype == jnp.bfloat16
    twice = 2**-8 * np.abs(bias).max()  # by the theorem the bias is added to what was rounded
    np.testing.assert_allclose(np.float64(y), truth, rtol=2**-8, atol=3e-6 * np.abs(truth).max() + twice)


def test_rounding_in_integers_is_that_of_numpy():
    """Every upper half of a float32 with lower halves around a tie: zeros, denormals, infinities and NaNs among them."""
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    x = (np.arange(2**16, dtype=np.uint32)[:, None] << 16 | lower).view(np.float32)
    y, number = np.asarray(to_bfloat16(jnp.asarray(x))), ~np.isnan(x)
    np.testing.assert_array_equal(~np.isnan(y), number)
    np.testing.assert_array_equal(y[number].view(np.uint16), x[number].astype(jnp.bfloat16).view(np.uint16))


@pytest.mark.parametrize(("images", "stride"), [(THEOREM_IMAGES, 1), (1, 1), (THEOREM_IMAGES, 2)])
def test_the_gradient_of_an_input_in_bfloat16_is_rounded_once(images, stride):
    x, kernel = (jnp.asarray(a, jnp.bfloat16) for a in draw(images, 6, 6, THEOREM_CHANNELS, 4, 3))
    y, back = jax.vjp(lambda x: convolve(x, kernel, pad=1, stride=stride), x)
    wide = [jnp.float32(a) for a in (x, kernel)]
    _, exact = jax.vjp(lambda x: textbook(x, wide[1], None, pad=1, stride=stride, dtype=jnp.float32), wide[0])
    (actual,), (truth,) = back(y), exact(jnp.float32(y))
    assert actual.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(actual), truth, rtol=2**-8, atol=3e-6 * np.abs(truth).max())


def test_computed_in_bfloat16_accelerators_round_the_input_and_a_cpu_does_not():
    """257 is 256 in bfloat16; nine of them are 2313, which is 2320 in bfloat16, and nine of 256 are 2304."""
    x, kernel = jnp.full((1, 3, 3, 1), 257.0), jnp.ones((3, 3, 1, 1))
    f = jax.jit(lambda x, k: convolve(x, k, pad=0, dtype=jnp.bfloat16))
    assert f(x, kernel).item() == 2320
    with portable(True):
        assert f(x, kernel).item() == 2304


@pytest.mark.parametrize("way", [cpu.convolve, textbook])
def test_in_bfloat16_the_gradient_of_a_bias_is_summed_in_float32(way):
    """It is 33 x 33, which bfloat16 has not."""

    def total(bias: jax.Array) -> jax.Array:
        x, kernel = jnp.ones((1, 33, 33, 1)), jnp.ones((1, 1, 1, 1))
        return jnp.sum(way(x, kernel, bias, pad=0, stride=1, dtype=jnp.bfloat16))

    gradient = jax.grad(total)(jnp.zeros((1,)))
    assert gradient.dtype == jnp.float32
    assert gradient.item() == 33 * 33


def test_a_nan_shows():
    x, kernel = draw(THEOREM_IMAGES, 6, 6, THEOREM_CHANNELS, 4, 3)
    x[3, 2, 1, 0] = np.nan
    y = np.asarray(convolve(x, kernel, pad=1))
    assert np.isnan(y[3]).any()
    assert np.isfinite(np.delete(y, 3, axis=0)).all()


@pytest.mark.parametrize("platform", ["cuda", "tpu", "cpu"])
def test_a_cpu_gets_its_own_form_and_all_else_the_default(platform):
    f = jax.jit(lambda x: by_platform(x, cpu=jnp.exp, default=jnp.cos))
    text = f.trace(jnp.ones(3)).lower(lowering_platforms=(platform,)).as_text()
    assert ("exponential" in text, "cosine" in text) == (platform == "cpu", platform != "cpu")


def test_where_portable_a_cpu_too_gets_the_default_in_the_same_compiled_function():
    f = jax.jit(lambda x: by_platform(x, cpu=jnp.exp, default=jnp.cos))
    assert f(0.5) == jnp.exp(0.5)
    with portable(True):
        assert f(0.5) == jnp.cos(0.5)
    assert f(0.5) == jnp.exp(0.5)


# --- the module ----------------------------------------------------------------------------------------------------


def test_convolution_computes_in_its_dtype_and_keeps_float32_parameters():
    x = jnp.ones((1, 4, 4, 3))
    y, variables = Conv(4, 3, dtype=jnp.bfloat16).init_with_output(jax.random.key(0), x)
    assert y.dtype == jnp.bfloat16
    assert {p.dtype for p in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(("deviation", "expected"), [(0.05, 0.05), (0.001, 0.001), ("he", np.sqrt(2 / (25 * 30)))])
def test_initial_weights_have_the_deviation_asked_for(deviation, expected):
    """150,000 numbers: their deviation is known to 0.2 %, their mean to 0.3 % of it. The biases start at 0."""
    x = jnp.zeros((1, 5, 5, 30))
    params = Conv(200, 5, gaussian(deviation)).init(jax.random.key(1), x)["params"]
    kernel = np.asarray(params["kernel"], np.float64)
    assert kernel.std() == pytest.approx(expected, rel=0.01)
    assert abs(kernel.mean()) < 0.012 * expected
    assert not params["bias"].any()


@pytest.mark.parametrize("channels", [1, 3, 8])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_the_form_of_a_gpu_is_the_textbooks_with_its_bias(channels, size):
    """Values and all three gradients; 8 channels of 5x5 are too many for patches."""
    x, kernel = draw(2, 7, 6, channels, 4, size)
    bias = np.arange(4, dtype=np.float32)
    geometry = {"pad": size // 2, "stride": 1, "dtype": jnp.float32}
    (y, back), (wanted, wanted_back) = (
        jax.vjp(lambda *a, form=form: form(*a, **geometry), x, kernel, bias) for form in (cuda_form, textbook)
    )
    np.testing.assert_allclose(y, wanted, atol=1e-5)
    for ours, theirs in zip(back(y), wanted_back(y), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-3)


def test_a_gpu_rounds_a_1x1_layer_once_and_sums_the_gradient_of_its_bias_in_float32():
    x, kernel = draw(2, 32, 32, 8, 4, 1)
    bias = np.linspace(-1, 1, 4, dtype=np.float32)
    half = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    y, back = jax.vjp(lambda *a: cuda_form(*a, pad=0, stride=1, dtype=jnp.bfloat16), *half, bias)
    exact = np.asarray(half[0], np.float32) @ np.asarray(half[1], np.float32)[0, 0] + bias
    np.testing.assert_array_equal(y, exact.astype(jnp.bfloat16))
    assert [g.dtype for g in back(y)] == [jnp.bfloat16, jnp.bfloat16, jnp.float32]
    np.testing.assert_allclose(back(y)[2], np.asarray(y, np.float64).sum((0, 1, 2)), rtol=1e-5)
