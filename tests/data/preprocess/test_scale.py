"""Division by a number or by each channel's deviation."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from nin_jax.data.preprocess import scale
from nin_jax.errors import UserError

TRAIN = np.random.default_rng(0).integers(0, 256, (60, 4, 5, 3)).astype(np.uint8)
TEST = np.random.default_rng(1).integers(0, 256, (7, 4, 5, 3)).astype(np.float32)


def test_divides_by_the_number_given():
    result = scale.apply(scale.fit(TRAIN, divisor=255), jnp.asarray(TEST), divisor=255)
    np.testing.assert_allclose(result, TEST.astype(np.float64) / 255, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_divides_by_each_channels_deviation(dtype):
    """A channel without any is left alone."""
    train = TRAIN.astype(dtype)
    train[..., 2] = 9
    result = scale.apply(scale.fit(train), jnp.asarray(TEST))
    deviation = [*train[..., :2].astype(np.float64).std((0, 1, 2)), 1]
    np.testing.assert_allclose(result, TEST / np.array(deviation), rtol=1e-5)


@pytest.mark.parametrize("divisor", [0, -1.0, float("nan")])
def test_a_divisor_that_is_not_positive_is_a_mistake(divisor):
    with pytest.raises(UserError, match="must be above 0"):
        scale.fit(TRAIN, divisor=divisor)
