"""The layers of the paper's rivals against explicit loops in NumPy float64 and against PyTorch."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from nin_jax.layers import (
    Conv,
    Dropout,
    LocalConv,
    RadialBasis,
    StochasticPool,
    maxout,
    response_normalisation,
    uniform,
)

torch = pytest.importorskip("torch", reason="PyTorch is the independent formula of the layers")
F = torch.nn.functional


def rng(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def assert_close(actual, expected, tolerance: float = 1e-5) -> None:
    """Largest difference at most `tolerance` of the largest expected number."""
    assert np.shape(actual) == np.shape(expected)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def leaf(x: np.ndarray):
    """An array that PyTorch may differentiate by."""
    return torch.from_numpy(np.array(x, np.float64)).requires_grad_()


def conv2d(x, kernel, bias, pad: int):
    """PyTorch's convolution of NHWC by an HWIO kernel."""
    return F.conv2d(x.permute(0, 3, 1, 2), kernel.permute(3, 2, 0, 1), bias, padding=pad).permute(0, 2, 3, 1)


def assert_equals_pytorch(mine, theirs, *arrays: np.ndarray) -> None:
    """Values, and gradients by every array, of the same function written twice."""
    leaves = [leaf(a) for a in arrays]
    expected = theirs(*leaves)

    @jax.jit
    def both(cotangent, *arrays):
        y, pull = jax.vjp(mine, *arrays)
        return y, pull(cotangent)

    cotangent = rng(*expected.shape, seed=9)
    y, gradients = both(cotangent, *arrays)
    expected.backward(torch.from_numpy(cotangent.astype(np.float64)))
    assert_close(y, expected.detach().numpy())
    for gradient, p in zip(gradients, leaves, strict=True):
        assert_close(gradient, p.grad.numpy())


# --- maxout --------------------------------------------------------------------------------------------------------


def test_maxout_is_the_largest_of_its_pieces():
    """Equation 3, unit by unit: filter m * F + k is piece m of unit k."""
    x, weight, bias = rng(4, 7), rng(7, 15), rng(15)
    expected = np.empty((4, 5))
    for b, k in np.ndindex(4, 5):
        expected[b, k] = max(weight[:, m * 5 + k].astype(np.float64) @ x[b] + bias[m * 5 + k] for m in range(3))
    assert_close(maxout(jnp.asarray(x @ weight + bias), 3), expected)


def test_the_gradient_of_maxout_goes_to_one_piece():
    """The first of those that are equal. It divides by nothing, so that it is finite however XLA rounds x."""
    x = jnp.asarray(np.random.default_rng(0).integers(0, 3, (50, 4 * 6)), jnp.float32)
    y, backward = jax.vjp(lambda x: maxout(x, 4), x)
    cotangent = rng(*y.shape)
    (gradient,) = backward(jnp.asarray(cotangent))
    winner = np.asarray(x).reshape(50, 4, 6).argmax(1)  # of NumPy: the first
    expected = np.where(np.arange(4)[None, :, None] == winner[:, None], cotangent[:, None], 0)
    np.testing.assert_array_equal(np.asarray(gradient).reshape(50, 4, 6), expected)


@pytest.mark.parametrize("piece", [0, 1, 2])
def test_a_nan_of_any_piece_shows_in_maxout(piece):
    x = jnp.ones((2, 3, 5)).at[1, piece, 2].set(jnp.nan)
    expected = np.zeros((2, 5), bool)
    expected[1, 2] = True
    np.testing.assert_array_equal(np.isnan(maxout(x.reshape(2, 15), 3)), expected)


@pytest.mark.parametrize(("size", "pad", "pieces"), [(8, 4, 2), (8, 0, 2), (5, 3, 4), (1, 1, 2), (3, None, 3)])
def test_convolutional_maxout_equals_pytorch(size, pad, pieces):
    """Kernels of even sizes too, which no padding keeps the size of; and its gradient."""
    features = 3

    def mine(x, kernel, bias):
        conv = Conv(features * pieces, size, pad=pad)
        return maxout(conv.apply({"params": {"kernel": kernel, "bias": bias}}, x), pieces)

    def theirs(x, kernel, bias):
        y = conv2d(x, kernel, bias, 1 if pad is None else pad)
        return torch.stack([y[..., m * features : (m + 1) * features] for m in range(pieces)]).amax(0)

    n = features * pieces
    assert_equals_pytorch(mine, theirs, rng(2, 9, 11, 4), rng(size, size, 4, n), rng(n))


def test_a_kernel_larger_than_the_padded_picture_is_refused():
    x = jnp.zeros((1, 5, 9, 1))
    assert jax.eval_shape(lambda: Conv(1, 7, pad=1).init_with_output(jax.random.key(0), x)[0]).shape == (1, 1, 5, 1)
    with pytest.raises(ValueError, match="kernel of 8 on 5 x 9 with pad 1"):
        Conv(1, 8, pad=1).init(jax.random.key(0), x)


def test_uniform_weights():
    """200,000 of them: between the limits, up to them, evenly."""
    weights = np.asarray(uniform(0.005)(jax.random.key(0), (100, 2000)))
    assert scipy.stats.kstest(weights.ravel(), scipy.stats.uniform(-0.005, 0.01).cdf).pvalue > 0.001
    assert 0.00499 < np.abs(weights).max() <= 0.005


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_unscaled_dropout_never_rescales(rate):
    """pylearn2's input layer: zeros in training, all else as it was; nothing at all in the test."""
    x = rng(4, 50_000) + 10
    layer = Dropout(rate, "unscaled")
    y = np.asarray(layer.apply({}, jnp.asarray(x), train=True, rngs={"dropout": jax.random.key(0)}))
    zeros = y == 0
    assert zeros.mean() == pytest.approx(rate, abs=5 * np.sqrt(rate * (1 - rate) / x.size))
    np.testing.assert_array_equal(y[~zeros], x[~zeros])
    np.testing.assert_array_equal(layer.apply({}, jnp.asarray(x), train=False), x)


# --- response normalisation ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("maps", "size", "alpha", "beta"), [(20, 9, 0.001, 0.75), (4, 9, 2.0, 0.75), (12, 5, 0.5, 1.5)]
)
def test_response_normalisation_and_its_gradient_equal_pytorch(maps, size, alpha, beta):
    """With many maps and with fewer than the window, small and large alpha."""
    assert_equals_pytorch(
        lambda x: response_normalisation(x, size, alpha, beta),
        lambda x: F.local_response_norm(x.permute(0, 3, 1, 2), size, alpha, beta).permute(0, 2, 3, 1),
        10 * rng(2, 3, 5, maps),
    )


def test_response_normalisation_is_the_formula_of_cuda_convnet():
    """alpha divided by N: written out for map 5 of 12."""
    x = 30 * rng(1, 1, 1, 12).astype(np.float64)
    expected = x[0, 0, 0, 5] / (1 + 0.001 / 9 * sum(x[0, 0, 0, j] ** 2 for j in range(1, 10))) ** 0.75
    y = response_normalisation(jnp.asarray(x, jnp.float32))
    assert float(y[0, 0, 0, 5]) == pytest.approx(expected, rel=1e-5)
    half = response_normalisation(jnp.asarray(x, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(half, np.float64), y, rtol=0.02)


# --- unshared convolution ------------------------------------------------------------------------------------------


def local(pad: int, size: int, features: int):
    def apply(x, kernel, bias):
        return LocalConv(features, size, pad).apply({"params": {"kernel": kernel, "bias": bias}}, x)

    return apply


CASES = [(4, 4, 3, 1), (5, 3, 3, 0), (6, 5, 2, 1)]  # height, width, size, pad


@pytest.mark.parametrize(("height", "width", "size", "pad"), CASES)
def test_unshared_convolution_is_a_filter_of_its_own_at_every_position(height, width, size, pad):
    rows, columns, features, channels = height + 2 * pad - size + 1, width + 2 * pad - size + 1, 3, 4
    x, bias = rng(2, height, width, channels), rng(rows, columns, features)
    kernel = rng(size, size, channels, rows * columns * features)
    padded = np.pad(x.astype(np.float64), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    expected = np.empty((2, rows, columns, features))
    for b, i, j, f in np.ndindex(*expected.shape):
        own = kernel[..., (i * columns + j) * features + f]
        expected[b, i, j, f] = np.sum(padded[b, i : i + size, j : j + size] * own) + bias[i, j, f]
    assert_close(local(pad, size, features)(*map(jnp.asarray, (x, kernel, bias))), expected)


@pytest.mark.parametrize(("height", "width", "size", "pad"), CASES)
def test_unshared_convolution_and_its_gradient_equal_pytorchs_unfold(height, width, size, pad):
    rows, columns, features, channels = height + 2 * pad - size + 1, width + 2 * pad - size + 1, 3, 4

    def theirs(x, kernel, bias):
        patches = F.unfold(x.permute(0, 3, 1, 2), size, padding=pad).reshape(-1, channels, size, size, rows, columns)
        own = kernel.reshape(size, size, channels, rows, columns, features)
        return torch.einsum("bcklij,klcijf->bijf", patches, own) + bias

    assert_equals_pytorch(
        local(pad, size, features),
        theirs,
        rng(2, height, width, channels),
        rng(size, size, channels, rows * columns * features),
        rng(rows, columns, features),
    )


@pytest.mark.parametrize(("features", "parameters"), [(10, 92_320), (16, 147_712)])
def test_unshared_layers_of_table_5_and_of_hinton(features, parameters):
    x = jnp.zeros((1, 4, 4, 64))
    y, variables = LocalConv(features, dtype=jnp.bfloat16).init_with_output(jax.random.key(0), x)
    assert (y.shape, y.dtype) == ((1, 4, 4, features), jnp.bfloat16)
    assert sum(p.size for p in jax.tree.leaves(variables)) == parameters
    assert {p.dtype for p in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    kernel = np.asarray(variables["params"]["kernel"])
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 64)), rel=0.02)  # of one filter's fan-in, not of all of them
    assert not variables["params"]["bias"].any()


# --- stochastic pooling --------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("size", "stride", "train"))
def draw(x, size: int = 3, stride: int = 2, *, train: bool = True, seed: int = 0, example=None) -> jax.Array:
    rngs = {"dropout": jax.random.key(seed)} if train else {}
    return StochasticPool(size, stride).apply({}, x, train=train, example=example, rngs=rngs)


def windows(x: np.ndarray, size: int, stride: int):
    """Every window of a picture [H, W], clipped at the edges, with its place in the output and its slices."""
    rows, columns = (int(np.ceil(max(n - size, 0) / stride)) + 1 for n in x.shape)
    for i, j in np.ndindex(rows, columns):
        place = (slice(i * stride, i * stride + size), slice(j * stride, j * stride + size))
        if x[place].size:
            yield (i, j), place, x[place]


WINDOW = np.float32([[0, 1, 2], [3, 0.5, 0], [4, 1.5, 0.25]])


def test_elements_are_drawn_as_often_as_their_share_says():
    """Chi-square over 100,000 windows with the same numbers; elements of 0 are never drawn."""
    drawn = np.asarray(draw(np.broadcast_to(WINDOW[None, :, :, None], (1, 3, 3, 100_000)))).ravel()
    values = WINDOW[WINDOW > 0]
    counts = np.array([(drawn == v).sum() for v in values])
    assert counts.sum() == drawn.size
    assert scipy.stats.chisquare(counts, drawn.size * values / values.sum()).pvalue > 0.001


def test_windows_maps_examples_and_steps_are_drawn_independently():
    """Contingency tables of two draws: of windows side by side, of neighbouring maps, of two examples, of two steps."""
    x = np.broadcast_to(np.arange(1, 16, dtype=np.float32).reshape(1, 3, 5, 1), (2, 3, 5, 40_000))
    y, later = np.asarray(draw(x)), np.asarray(draw(x, seed=1))
    one = y[0, 0, 0]
    for other in (y[0, 0, 1], np.roll(one, 1), y[1, 0, 0], later[0, 0, 0]):
        table = scipy.stats.contingency.crosstab(one, other).count
        assert table.shape == (9, 9)
        assert scipy.stats.chi2_contingency(table).pvalue > 0.001


@pytest.mark.parametrize(
    ("size", "stride", "height", "width"), [(3, 2, 8, 7), (2, 2, 5, 4), (3, 1, 4, 4), (4, 3, 3, 9)]
)
def test_one_element_of_each_window_is_drawn_and_gets_all_the_gradient(size, stride, height, width):
    """No two elements are equal, so the value tells which one it was; windows overlap and hang over the edge."""
    x = np.random.default_rng(0).permutation(height * width * 5).reshape(1, height, width, 5).astype(np.float32) + 1
    y, pull = jax.vjp(lambda x: draw(x, size, stride), jnp.asarray(x))
    y, cotangent, expected = np.asarray(y), rng(*y.shape), np.zeros_like(x)
    for c in range(5):
        seen = 0
        for (i, j), place, window in windows(x[0, :, :, c], size, stride):
            hit = window == y[0, i, j, c]
            assert hit.sum() == 1
            expected[0, :, :, c][place] += hit * cotangent[0, i, j, c]
            seen += 1
        assert seen == y.shape[1] * y.shape[2]
    assert_close(pull(jnp.asarray(cotangent))[0], expected, 1e-6)


@pytest.mark.parametrize(("size", "stride", "height", "width"), [(3, 2, 8, 7), (2, 2, 5, 4), (4, 3, 3, 9)])
def test_the_test_form_is_probabilistic_weighting(size, stride, height, width):
    """sum of p_i a_i, window by window; PyTorch's gradient of the quotient of two average pools."""
    x = np.maximum(rng(2, height, width, 3), 0) + np.float32(1e-3)
    x[0, :, :, 0] *= x[0, :, :, 0] > 0.5  # with elements of 0
    y = np.asarray(draw(x, size, stride, train=False))
    for b, c in np.ndindex(2, 3):
        for (i, j), _, window in windows(x[b, :, :, c], size, stride):
            a = window.astype(np.float64).ravel()
            p = a / a.sum() if a.any() else np.zeros_like(a)
            assert y[b, i, j, c] == pytest.approx(p @ a, rel=1e-5)

    def theirs(x):
        x = x.permute(0, 3, 1, 2)
        sums = [F.avg_pool2d(a, size, stride, ceil_mode=True, count_include_pad=False) for a in (x * x, x)]
        return (sums[0] / sums[1]).permute(0, 2, 3, 1)

    assert_equals_pytorch(lambda x: draw(x, size, stride, train=False), theirs, x + np.float32(0.01))


def test_the_test_form_is_the_expectation_of_the_draws():
    """The mean over 100,000 draws of each of four windows, to five standard errors."""
    x = np.broadcast_to(np.maximum(rng(1, 5, 5, 1), 0), (1, 5, 5, 100_000))
    draws, expected = np.asarray(draw(x)), np.asarray(draw(x[..., :1], train=False))
    error = 5 * draws.std(-1, keepdims=True) / np.sqrt(draws.shape[-1])
    assert (np.abs(draws.mean(-1, keepdims=True) - expected) <= error).all()


@pytest.mark.parametrize("train", [True, False])
def test_a_window_of_zeros_becomes_zero_without_a_gradient(train):
    x = np.zeros((1, 5, 3, 2), np.float32)
    x[0, 3:, :, 0] = 1
    y, pull = jax.vjp(lambda x: draw(x, train=train), jnp.asarray(x))
    np.testing.assert_array_equal(np.asarray(y)[0, :, 0], [[0, 0], [1, 0]])
    gradient = np.asarray(pull(jnp.ones_like(y))[0])
    np.testing.assert_array_equal(gradient[..., 1], 0)
    np.testing.assert_array_equal(gradient[0, :2, :, 0], 0)
    # The expectation falls where a 0 rises: by 1/6 for each of three, as it rises by 1/6 for each of six ones.
    assert gradient[0, 2:, :, 0].sum() == pytest.approx(1 if train else 0.5)


@settings(max_examples=6)
@given(st.permutations(range(6)), st.sampled_from([1, 4]))
def test_the_draws_of_an_example_do_not_depend_on_its_place_in_the_array(order, parts):
    """Whatever the order, and however the batch is cut into pieces, example i gets its own draws."""
    x = np.broadcast_to(np.random.default_rng(0).uniform(1, 2, (1, 5, 5, 4)).astype(np.float32), (6, 5, 5, 4))
    whole, order = np.asarray(draw(x)), np.array(order)
    np.testing.assert_array_equal(draw(x, example=order), whole[order])
    pieces = [draw(x[:parts], example=order[:parts]), whole[order[parts:]]]
    np.testing.assert_array_equal(np.concatenate(pieces), whole[list(order)])


def test_two_pools_of_a_network_draw_differently():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x):
            return StochasticPool(name="first")(x, train=True), StochasticPool(name="second")(x, train=True)

    x = jnp.asarray(np.broadcast_to(WINDOW[None, :, :, None], (1, 3, 3, 40_000)))
    one, other = (np.asarray(y).ravel() for y in Two().apply({}, x, rngs={"dropout": jax.random.key(0)}))
    assert scipy.stats.chi2_contingency(scipy.stats.contingency.crosstab(one, other).count).pvalue > 0.001


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_shows(train, bad):
    x = np.ones((1, 5, 5, 1), np.float32)
    x[0, 0, 0, 0] = bad
    finite = np.isfinite(draw(x, train=train))[0, :, :, 0]
    np.testing.assert_array_equal(finite, [[False, True], [True, True]])


def test_stochastic_pooling_keeps_the_dtype_and_sums_in_float32():
    """In bfloat16 256 + 1 is 256, and the ones of this window would never be drawn."""
    x = jnp.ones((1, 3, 3, 20_000), jnp.bfloat16).at[:, 0, 0].set(256)
    y = draw(x)
    assert y.dtype == draw(x, train=False).dtype == jnp.bfloat16
    share = np.mean(np.asarray(y, np.float32) == 256)
    assert share == pytest.approx(256 / 264, abs=5 * np.sqrt(256 * 8) / 264 / np.sqrt(20_000))


# --- radial basis units --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3])
def test_radial_basis_units_against_loops(size: int):
    """exp(-exp(s) x the mean squared distance of window and centre), with zeros around the image."""
    x, centres, scale = rng(2, 4, 5, 3), rng(size, size, 3, 6), rng(1, 1, 1, 6)
    y = RadialBasis(6, size).apply({"params": {"kernel": centres, "log_scale": scale}}, x)
    padded = np.pad(x.astype(np.float64), ((0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)))
    expected = np.empty((2, 4, 5, 6))
    for b, i, j, k in np.ndindex(expected.shape):
        distance = np.mean((padded[b, i : i + size, j : j + size] - centres[..., k]) ** 2)
        expected[b, i, j, k] = np.exp(-np.exp(scale[0, 0, 0, k]) * distance)
    assert_close(y, expected)


def test_a_radial_basis_centre_starts_as_one_colour():
    kernel = RadialBasis(6, 3).init(jax.random.key(0), rng(1, 4, 4, 3))["params"]["kernel"]
    assert kernel.shape == (3, 3, 3, 6)
    assert np.ptp(kernel, (0, 1)).max() == 0
    assert 0.5 < np.std(kernel[0, 0]) < 1.5
