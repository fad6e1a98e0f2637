"""Dropout: shares, scales, and whose masks are whose."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nin_jax.layers import Dropout
from nin_jax.layers.dropout import random_bits


def rng(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


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
    bits = np.asarray(random_bits(jax.random.key(0), (1, 100_003), None))[0]
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
