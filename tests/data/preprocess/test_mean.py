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


@pytest.mark.parametrize(("trained", "given"), [((4, 5), (1, 5)), ((4, 5), (4, 1)), ((1, 5), (4, 5)), ((1, 1), (4, 5))])
def test_the_mean_of_pixels_is_for_one_size(trained, given):
    """NumPy and JAX would repeat a row or a column."""
    stats = mean.fit(np.zeros((2, *trained, 3), np.uint8))
    said = rf"mean\(per='pixel'\): images of {given[0]} x {given[1]}, and the mean is of {trained[0]} x {trained[1]}"
    with pytest.raises(UserError, match=said):
        mean.apply(stats, jnp.zeros((2, *given, 3)))
    channel = mean.fit(np.zeros((2, *trained, 3), np.uint8), per="channel")
    assert mean.apply(channel, jnp.zeros((2, *given, 3)), per="channel").shape == (2, *given, 3)
