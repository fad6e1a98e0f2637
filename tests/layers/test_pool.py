"""The pools against PyTorch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nin_jax.layers import avg_pool, global_average_pool, max_pool, portable
from nin_jax.layers.pool import by_slices, by_window

WHY_TORCH = "PyTorch is the independent formula of the pools"


def rng(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def assert_close(actual, expected, tolerance: float) -> None:
    """Largest difference at most `tolerance` of the largest expected number."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


# Rectangular inputs, so that one compilation shows two sizes: for 3/2, the paper's, the least, the largest, odd and even.
SIDES = [(k, 35 - k) for k in (2, 3, 4, 5, 8, 17)]
FEW = [(4, 33), (5, 10)]
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


@pytest.mark.parametrize(
    ("size", "stride", "height", "width", "form"),
    [*((*case, False) for case in POOLS), *((*case, True) for case in POOLS[::5])],
)
def test_max_pool_and_its_gradient_equal_pytorch_bit_by_bit(size, stride, height, width, form):
    """With ties in most windows, in float32 and bfloat16; that of a CPU and the portable one."""
    torch = pytest.importorskip("torch", reason=WHY_TORCH)
    x = np.random.default_rng(0).integers(-2, 3, (2, height, width, 3)).astype(np.float32)
    for dtype in ("bfloat16",) if form else ("float32", "bfloat16"):
        theirs = nchw(x).to(getattr(torch, dtype)).requires_grad_()
        expected = torch.nn.functional.max_pool2d(theirs, size, stride, ceil_mode=True)
        with portable(form):
            y, gradient, cotangent = value_and_cotangents(
                max_pool, jnp.asarray(x, dtype), nhwc(expected).shape, size, stride
            )
        expected.backward(nchw(cotangent).to(expected.dtype))
        assert y.dtype == gradient.dtype == jnp.dtype(dtype)
        np.testing.assert_array_equal(np.asarray(y, np.float32), nhwc(expected))
        np.testing.assert_array_equal(np.asarray(gradient, np.float32), nhwc(theirs.grad))


@pytest.mark.parametrize(
    ("size", "stride", "height", "width", "dtype"),
    [*((*case, "float32") for case in POOLS[::2]), *((*case, "bfloat16") for case in POOLS[1::4])],
)
def test_the_form_of_a_tpu_is_the_others_bit_by_bit(size, stride, height, width, dtype):
    """Values and gradients, with ties in most windows."""
    x = jnp.asarray(np.random.default_rng(0).integers(-2, 3, (2, height, width, 3)), dtype)
    like = jax.eval_shape(lambda x: by_slices(x, size, stride), x).shape
    ours, theirs = (value_and_cotangents(form, x, like, size, stride)[:2] for form in (by_window, by_slices))
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))


@pytest.mark.parametrize(("size", "stride", "height", "width"), POOLS[::3])
def test_avg_pool_and_its_gradient_equal_pytorch(size, stride, height, width):
    """The sum of a window that hangs over the edge is divided by the number of its elements in the image."""
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
def test_pools_that_start_outside_the_image_equal_pytorch(kind, start):
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
    pools = {
        "max": lambda x: max_pool(x, start=start),
        "avg": lambda x: avg_pool(x, start=start),
        "avg_padded": lambda x: avg_pool(x, start=start, count_zeros=True),
    }
    y, pull = jax.vjp(pools[kind], jnp.asarray(x))
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
