"""Cross-entropy and error against SciPy in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from nin_jax.training.tasks import classify


@pytest.mark.parametrize("size", [1.0, 30.0, 1e4])
def test_loss_and_error_of_each_example(size):
    """Also of logits so large that their exponentials overflow."""
    draw = np.random.default_rng(0)
    logits = np.float32(size) * draw.standard_normal((50, 10), np.float32)
    labels = draw.integers(0, 10, 50).astype(np.int32)
    result = classify.per_example(jnp.asarray(logits), jnp.asarray(labels))
    loss = -scipy.special.log_softmax(logits.astype(np.float64), axis=1)[np.arange(50), labels]
    np.testing.assert_allclose(result["loss"], loss, rtol=1e-5, atol=1e-6 * size)
    np.testing.assert_array_equal(result["error"], logits.argmax(1) != labels)
    assert {v.dtype for v in result.values()} == {jnp.dtype("float32")}


def test_of_equal_logits_the_first_counts():
    logits = jnp.asarray([[0.0, 0, 0], [1, 2, 2], [1, 2, 2]])
    result = classify.per_example(logits, jnp.asarray([0, 1, 2]))
    np.testing.assert_array_equal(result["error"], [0, 0, 1])
    np.testing.assert_allclose(result["loss"][0], np.log(3), rtol=1e-6)


def test_the_gradient_is_softmax_minus_the_label():
    draw = np.random.default_rng(1)
    logits, labels = draw.standard_normal((6, 4), np.float32), np.array([0, 1, 2, 3, 0, 0], np.int32)
    gradient = jax.grad(lambda x: jnp.sum(classify.per_example(x, jnp.asarray(labels))["loss"]))(jnp.asarray(logits))
    expected = scipy.special.softmax(logits.astype(np.float64), axis=1) - np.eye(4)[labels]
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_the_objective_is_cross_entropy_with_smoothed_labels(smoothing):
    draw = np.random.default_rng(2)
    logits, labels = 3 * draw.standard_normal((6, 4), np.float32), np.array([0, 1, 2, 3, 0, 0], np.int32)
    wanted = (1 - smoothing) * np.eye(4)[labels] + smoothing / 4
    expected = -(wanted * scipy.special.log_softmax(logits.astype(np.float64), axis=1)).sum(1)
    np.testing.assert_allclose(
        classify.objective(jnp.asarray(logits), jnp.asarray(labels), smoothing=smoothing), expected, rtol=1e-5
    )


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_a_smoothing_that_is_none_is_named(smoothing):
    with pytest.raises(ValueError, match="must be 0 or more, and less than 1"):
        classify.objective(jnp.zeros((1, 3)), jnp.zeros(1, jnp.int32), smoothing=smoothing)
