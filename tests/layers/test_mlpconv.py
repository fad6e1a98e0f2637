"""The layers against explicit loops in NumPy float64 and against PyTorch."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nin_jax import layers
from nin_jax.layers import Conv, Dropout, MLPConv, avg_pool, gaussian, global_average_pool, max_pool

WHY_TORCH = "PyTorch is the independent formula of the pools"


def rng(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def assert_close(actual, expected, tolerance: float) -> None:
    """Largest difference at most `tolerance` of the largest expected number."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


# --- mlpconv -------------------------------------------------------------------------------------------------------


def sliding_mlp(x: np.ndarray, weights: list[tuple[np.ndarray, np.ndarray]], relu_last: bool) -> list[np.ndarray]:
    """Equation 2, position by position, in float64: a perceptron applied to the patch around each pixel."""
    size, half = weights[0][0].shape[0], weights[0][0].shape[0] // 2
    padded = np.pad(x.astype(np.float64), ((0, 0), (half, half), (half, half), (0, 0)))
    maps = [np.zeros((*x.shape[:3], len(bias))) for _, bias in weights]
    for b, i, j in np.ndindex(*x.shape[:3]):
        f = padded[b, i : i + size, j : j + size].ravel()
        for n, (kernel, bias) in enumerate(weights):
            f = kernel.astype(np.float64).reshape(-1, len(bias)).T @ f + bias
            if relu_last or n + 1 < len(weights):
                f = np.maximum(f, 0)
            maps[n][b, i, j] = f
    return maps


@settings(max_examples=12)
@given(
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    channels=st.integers(1, 4),
    size=st.sampled_from([1, 3, 5]),
    widths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    relu_last=st.booleans(),
    seed=st.integers(0, 9),
)
def test_mlpconv_is_a_perceptron_slid_over_the_patches(height, width, channels, size, widths, relu_last, seed):
    """Every layer's map, for any size, depth and kernel, to 1e-6 of float64."""
    names = [f"layer{n}" for n in range(len(widths))]
    x = rng(2, height, width, channels, seed=seed)
    ins = [size * size * channels, *widths]
    weights = [
        (rng(side, side, fan // side**2, out, seed=seed + 1) / np.float32(np.sqrt(fan)), rng(out, seed=seed + 2))
        for side, fan, out in zip([size, *[1] * len(widths)], ins, widths, strict=False)
    ]
    params = {name: {"kernel": k, "bias": b} for name, (k, b) in zip(names, weights, strict=True)}
    layer = MLPConv(names, widths, size, [0.05] * len(widths), relu_last)
    maps = layer.apply({"params": jax.tree.map(jnp.asarray, params)}, jnp.asarray(x))
    expected = sliding_mlp(x, weights, relu_last)
    assert list(maps) == names
    for name, reference in zip(names, expected, strict=True):
        assert maps[name].shape == reference.shape
        np.testing.assert_allclose(maps[name], reference, rtol=1e-6, atol=1e-6 * max(1, np.abs(reference).max()))


@pytest.mark.parametrize("names", [("z", "b"), ("z",)])
@pytest.mark.parametrize(("channels", "batch_norm"), [(3, False), (20, True)])
def test_in_an_evaluation_a_few_pictures_at_a_time_give_what_all_at_once_do(channels, batch_norm, names):
    """Twelve pieces of 4 pictures, whose maps would take 36 MiB, on a CPU; in training, and with 47 pictures, all at once.

    The first convolution sees all pictures where it is done by the theorem.
    """
    layer = MLPConv(names, (64, 4)[: len(names)], 3, ["he"] * len(names), pool="max", batch_norm=batch_norm)
    x = jnp.asarray(rng(48, 56, 56, channels))
    variables = layer.init(jax.random.key(0), x[:1])
    f = jax.jit(functools.partial(layer.apply, mutable=["batch_stats"]), static_argnames="train")
    maps, _ = f(variables, x)
    whole: Any = layer.apply(variables, x, train=False, method="_layers")
    assert maps.keys() == whole.keys() == {*names, "pool"}
    for name, expected in whole.items():
        assert maps[name].shape == expected.shape
        np.testing.assert_allclose(maps[name], expected, atol=1e-5)

    def loops(x: jax.Array, train: bool, platform: str = "cpu") -> bool:
        return "stablehlo.while" in f.trace(variables, x, train=train).lower(lowering_platforms=(platform,)).as_text()

    assert loops(x, train=False)
    piece = f"f32[12,4,56,56,{64 if channels == 20 else 3}]"
    assert piece in str(jax.make_jaxpr(functools.partial(layer.apply, train=False))(variables, x))
    assert not loops(x[:4], train=False)
    assert not loops(x, train=True)
    assert not loops(x[:-1], train=False)
    assert not loops(x, train=False, platform="cuda")


def test_a_1x1_convolution_is_a_matrix_product():
    x, kernel, bias = rng(2, 3, 5, 7), rng(1, 1, 7, 4), rng(4)
    y = Conv(4).apply({"params": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}}, jnp.asarray(x))
    assert_close(y, x.astype(np.float64) @ kernel[0, 0] + bias, 1e-6)


def test_convolution_computes_in_its_dtype_and_keeps_float32_parameters():
    y, variables = Conv(4, 3, dtype=jnp.bfloat16).init_with_output(jax.random.key(0), jnp.asarray(rng(1, 4, 4, 3)))
    assert y.dtype == jnp.bfloat16
    assert {p.dtype for p in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_in_bfloat16_the_gradient_of_a_bias_is_summed_in_float32():
    """It is 33 x 33, which bfloat16 has not."""
    gradient = jax.grad(lambda p: jnp.sum(Conv(1, dtype=jnp.bfloat16).apply({"params": p}, jnp.ones((1, 33, 33, 1)))))(
        {"kernel": jnp.ones((1, 1, 1, 1)), "bias": jnp.zeros((1,))}
    )
    assert gradient["bias"].dtype == jnp.float32
    assert gradient["bias"] == 33 * 33


@pytest.mark.parametrize(("deviation", "expected"), [(0.05, 0.05), (0.001, 0.001), ("he", np.sqrt(2 / (25 * 30)))])
def test_initial_weights_have_the_deviation_asked_for(deviation, expected):
    """150,000 numbers: their deviation is known to 0.2 %, their mean to 0.3 % of it. The biases start at 0."""
    x = jnp.zeros((1, 5, 5, 30))
    params = Conv(200, 5, gaussian(deviation)).init(jax.random.key(1), x)["params"]
    kernel = np.asarray(params["kernel"], np.float64)
    assert kernel.std() == pytest.approx(expected, rel=0.01)
    assert abs(kernel.mean()) < 0.012 * expected
    assert not params["bias"].any()


# --- pools ---------------------------------------------------------------------------------------------------------

# Rectangular inputs, so that one compilation shows two sizes: for 3/2, the paper's, all of 2 to 33.
SIDES = [(k, 35 - k) for k in range(2, 19)]
FEW = [(3, 33), (4, 32), (5, 9)]
POOLS = [
    *[(3, 2, h, w) for h, w in SIDES],
    *[(size, stride, h, w) for size, stride in [(2, 2), (3, 1), (4, 2), (1, 2), (2, 3)] for h, w in FEW],
    *[(4, 2, 3, 3), (2, 2, 1, 1), (5, 4, 2, 3)],  # smaller than the window
]


def nchw(x: np.ndarray):
    """An array that PyTorch may differentiate by, channels first."""
    torch = pytest.importorskip("torch", reason=WHY_TORCH)
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(x, np.float32), 3, 1)))


def nhwc(x) -> np.ndarray:
    return np.moveaxis(x.detach().float().numpy(), 1, 3)


def value_and_cotangents(pool, x: jax.Array, like: tuple[int, ...], size: int, stride: int):
    """The pool of x, a cotangent of that shape made of whole numbers (whose sums are exact), and its pull-back."""
    cotangent = np.random.default_rng(1).integers(-8, 9, like).astype(np.float32)

    @jax.jit
    def both(x, cotangent):
        y, pull = jax.vjp(lambda x: pool(x, size, stride), x)
        return y, pull(cotangent.astype(x.dtype))[0]

    y, gradient = both(x, cotangent)
    return y, gradient, cotangent


@pytest.mark.parametrize(("size", "stride", "height", "width"), POOLS)
def test_max_pool_and_its_gradient_equal_pytorch_bit_by_bit(size, stride, height, width):
    """With ties in most windows, in float32 and bfloat16."""
    torch = pytest.importorskip("torch", reason=WHY_TORCH)
    x = np.random.default_rng(0).integers(-2, 3, (2, height, width, 3)).astype(np.float32)
    for dtype in ("float32", "bfloat16"):
        theirs = nchw(x).to(getattr(torch, dtype)).requires_grad_()
        expected = torch.nn.functional.max_pool2d(theirs, size, stride, ceil_mode=True)
        y, gradient, cotangent = value_and_cotangents(
            max_pool, jnp.asarray(x, dtype), nhwc(expected).shape, size, stride
        )
        expected.backward(nchw(cotangent).to(expected.dtype))
        assert y.dtype == gradient.dtype == jnp.dtype(dtype)
        np.testing.assert_array_equal(np.asarray(y, np.float32), nhwc(expected))
        np.testing.assert_array_equal(np.asarray(gradient, np.float32), nhwc(theirs.grad))


@pytest.mark.parametrize(("size", "stride", "height", "width"), POOLS[::3])
def test_avg_pool_and_its_gradient_equal_pytorch(size, stride, height, width):
    """The sum of a window that hangs over the edge is divided by the number of its elements in the picture."""
    torch = pytest.importorskip("torch", reason=WHY_TORCH)
    x = rng(2, height, width, 3)
    theirs = nchw(x).requires_grad_()
    expected = torch.nn.functional.avg_pool2d(theirs, size, stride, ceil_mode=True, count_include_pad=False)
    y, gradient, cotangent = value_and_cotangents(avg_pool, jnp.asarray(x), nhwc(expected).shape, size, stride)
    expected.backward(nchw(cotangent))
    assert_close(y, nhwc(expected), 1e-6)
    assert_close(gradient, nhwc(theirs.grad), 1e-6)


@pytest.mark.parametrize("kind", ["max", "avg", "avg_padded"])
@pytest.mark.parametrize("start", [0, -1])
def test_pools_that_start_outside_the_picture_equal_pytorch(kind, start):
    """-1 is PyTorch's `padding=1`; "avg_padded" counts the zeros beyond the edge, PyTorch's `count_include_pad`."""
    torch = pytest.importorskip("torch", reason=WHY_TORCH)
    x = rng(2, 8, 14, 3)
    theirs = nchw(x).requires_grad_()
    if start == 0 and kind == "avg_padded":  # zeros that the ceil grid adds do not count in PyTorch: they are put there
        framed = torch.nn.functional.pad(theirs, (0, 1, 0, 1))
        expected = torch.nn.functional.avg_pool2d(framed, 3, 2)
    elif kind == "max":
        expected = torch.nn.functional.max_pool2d(theirs, 3, 2, padding=-start, ceil_mode=start == 0)
    else:
        counts = kind == "avg_padded"
        expected = torch.nn.functional.avg_pool2d(
            theirs, 3, 2, padding=-start, ceil_mode=start == 0, count_include_pad=counts
        )
    y, pull = jax.vjp(lambda x: layers.POOLS[kind](x, start), jnp.asarray(x))
    cotangent = rng(*y.shape)
    expected.backward(nchw(cotangent))
    assert_close(y, nhwc(expected), 1e-6)
    assert_close(pull(jnp.asarray(cotangent))[0], nhwc(theirs.grad), 1e-6)


@pytest.mark.parametrize("pool", [max_pool, avg_pool])
def test_pools_have_the_papers_grid_and_keep_the_dtype(pool):
    """32 to 16 to 8, and 28 to 14 to 7, as the paper's networks have it."""
    for n, out in ((32, 16), (16, 8), (28, 14), (14, 7)):
        y = jax.eval_shape(pool, jax.ShapeDtypeStruct((1, n, n, 2), jnp.bfloat16))
        assert (y.shape, y.dtype) == ((1, out, out, 2), jnp.dtype("bfloat16"))


@pytest.mark.parametrize("place", [(0, 0), (1, 2), (4, 4)])
def test_a_nan_shows_in_max_pool_also_under_a_gradient(place):
    x = np.zeros((1, 5, 5, 2), np.float32)
    x[0, *place, 0] = np.nan
    hit = np.isnan(max_pool(jnp.asarray(x)))
    rows, columns = ([k for k in range(2) if 2 * k <= p <= 2 * k + 2] for p in place)
    expected = np.zeros((1, 2, 2, 2), bool)
    expected[0, np.ix_(rows, columns)[0], np.ix_(rows, columns)[1], 0] = True
    np.testing.assert_array_equal(hit, expected)
    under_gradient, _ = jax.vjp(max_pool, jnp.asarray(x))
    np.testing.assert_array_equal(np.isnan(under_gradient), expected)
    assert np.isnan(jax.value_and_grad(lambda x: jnp.sum(max_pool(x)))(jnp.asarray(x))[0])


def test_global_average_pool_is_the_mean_of_each_map_in_float32():
    x = rng(3, 7, 5, 4) + 100
    assert_close(global_average_pool(jnp.asarray(x)), x.astype(np.float64).mean((1, 2)), 1e-6)
    half = jnp.asarray(x, jnp.bfloat16)
    y = global_average_pool(half)
    assert y.dtype == jnp.float32
    assert_close(y, np.asarray(half, np.float64).mean((1, 2)), 1e-6)


# --- dropout -------------------------------------------------------------------------------------------------------


def drop(x, rate: float, kind: str, *, train: bool = True, seed: int = 0, example=None) -> np.ndarray:
    rngs = {"dropout": jax.random.key(seed)} if train else {}
    example = None if example is None else jnp.asarray(example)
    return np.asarray(Dropout(rate, kind).apply({}, jnp.asarray(x), train=train, example=example, rngs=rngs))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
@pytest.mark.parametrize(("kind", "scale"), [("classic", lambda keep: 1.0), ("inverted", lambda keep: 1 / keep)])
def test_dropout_zeroes_the_share_asked_for_and_scales_the_rest(kind, scale, rate):
    """200,000 elements: the share of zeros is `rate` to five standard deviations; all others are x times one number."""
    x = rng(4, 50_000) + 10
    y = drop(x, rate, kind)
    zeros = y == 0
    assert zeros.mean() == pytest.approx(rate, abs=5 * np.sqrt(rate * (1 - rate) / x.size))
    np.testing.assert_allclose(y[~zeros], x[~zeros] * scale(1 - rate), rtol=1e-4)  # rates are whole 65536ths


@pytest.mark.parametrize("rate", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("kind", ["classic", "inverted"])
def test_dropout_in_the_test_is_the_expectation_of_the_training(kind, rate):
    """Classic multiplies by 1 - rate, inverted by 1; the mean over many masks is the same number."""
    x = np.ones((64, 4096), np.float32)
    y = drop(x, rate, kind, train=False)
    np.testing.assert_array_equal(y, x * np.float32(1 - rate if kind == "classic" else 1))
    assert drop(x, rate, kind).mean() == pytest.approx(y.mean(), abs=5 / np.sqrt(x.size))


def test_dropout_masks_are_independent_between_examples_layers_and_steps():
    """The shares of elements that two masks have in common are 1/2, to five standard deviations."""

    class Two(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Dropout(0.5, name="first")(x, train=True), Dropout(0.5, name="second")(x, train=True)

    x = jnp.ones((3, 20_000))
    one, other = (np.asarray(y) > 0 for y in Two().apply({}, x, rngs={"dropout": jax.random.key(0)}))
    later = np.asarray(Two().apply({}, x, rngs={"dropout": jax.random.key(1)})[0]) > 0
    for a, b in [(one[0], one[1]), (one[1], one[2]), (one, other), (one, later), (one[0], other[1])]:
        assert (a == b).mean() == pytest.approx(0.5, abs=2.5 / np.sqrt(a.size))
    row = one.reshape(-1)
    assert (row[1:] == row[:-1]).mean() == pytest.approx(0.5, abs=2.5 / np.sqrt(row.size))


@settings(max_examples=6)
@given(st.permutations(range(6)), st.sampled_from([1, 4]))
def test_the_mask_of_an_example_does_not_depend_on_its_place_in_the_array(order, parts):
    """Whatever the order, and however the batch is cut into pieces, example i gets its own mask."""
    x = np.ones((6, 40), np.float32)
    whole = drop(x, 0.5, "inverted")
    np.testing.assert_array_equal(drop(x, 0.5, "inverted", example=order), whole[list(order)])
    pieces = [drop(x[:parts], 0.5, "inverted", example=order[:parts]), whole[list(order[parts:])]]
    np.testing.assert_array_equal(np.concatenate(pieces), whole[list(order)])


def test_random_bits_are_even_and_independent_within_an_example():
    """Each of the 16 bits is set in half of 100,000 numbers, and a number says nothing about one a quarter further on."""
    bits = np.asarray(layers._random_bits(jax.random.key(0), (1, 100_003), None))[0]
    assert bits.dtype == np.uint16
    shares = (bits[:, None] >> np.arange(16) & 1).mean(0)
    np.testing.assert_allclose(shares, 0.5, atol=5 * 0.5 / np.sqrt(bits.size))
    quarter = -(-bits.size // 4)
    for step in (1, quarter, 2 * quarter, 3 * quarter):
        assert abs(np.corrcoef(bits[step:], bits[:-step])[0, 1]) < 5 / np.sqrt(bits.size - step)


def test_dropout_of_zero_needs_no_random_key_and_wrong_rates_are_refused():
    x = rng(2, 8)
    np.testing.assert_array_equal(Dropout(0.0).apply({}, jnp.asarray(x), train=True), x)
    for rate in (1.0, -0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"dropout|NaN"):
            drop(x, rate, "classic", train=False)


def test_the_gradient_of_dropout_is_its_mask():
    x = jnp.asarray(rng(2, 100) + 10)

    def f(x, kind):
        return jnp.sum(Dropout(0.5, kind).apply({}, x, train=True, rngs={"dropout": jax.random.key(0)}))

    for kind, scale in (("classic", 1.0), ("inverted", 2.0)):
        np.testing.assert_array_equal(jax.grad(f)(x, kind), (drop(x, 0.5, kind) != 0) * np.float32(scale))
