"""The order of the colour channels."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from nin_jax import registry
from nin_jax.data import fitted


def test_red_and_blue_change_places():
    red = np.zeros((2, 3, 4, 3), np.uint8)
    red[..., 0], red[..., 1] = 200, 7
    ops = registry.calls("preprocess", ("bgr()",))
    result = np.asarray(fitted.apply(ops, fitted.fit(ops, red), jnp.asarray(red)))
    np.testing.assert_array_equal(result, np.broadcast_to([0.0, 7.0, 200.0], red.shape))
