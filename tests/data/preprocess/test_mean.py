"""The training mean: by pixel and by channel."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from nin_jax.data.preprocess import mean
from nin_jax.errors import UserError


@pytest.mark.parametrize(("per", "axes"), [("pixel", 0), ("channel", (0, 1, 2))])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_subtracts_the_training_mean(per, axes, dtype):
    draw = np.random.default_rng(0)
    train = draw.integers(0, 256, (50, 4, 5, 3)).astype(dtype)
    test = draw.integers(0, 256, (7, 4, 5, 3)).astype(np.float32)
    stats = mean.fit(train, per=per)
    expected = test - train.astype(np.float64).mean(axes)
    np.testing.assert_allclose(mean.apply(stats, jnp.asarray(test), per=per), expected, rtol=0, atol=255e-6)


def test_an_unknown_axis_is_a_mistake():
    with pytest.raises(UserError, match="'pixel' or 'channel'"):
        mean.fit(np.zeros((2, 1, 1, 1), np.uint8), per="image")
