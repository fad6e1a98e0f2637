"""Random mirroring."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from nin_jax.data.preprocess import flip


def test_mirrors_half_of_the_pictures_left_to_right():
    """Each picture is itself or its mirror image; of 10,000 half, to five standard deviations, are mirrored."""
    images = np.random.default_rng(0).standard_normal((10_000, 2, 3, 2)).astype(np.float32)
    result = np.asarray(flip.apply(jax.random.split(jax.random.key(0), len(images)), jnp.asarray(images)))
    same = (result == images).all((1, 2, 3))
    mirrored = (result == images[:, :, ::-1]).all((1, 2, 3))
    np.testing.assert_array_equal(same ^ mirrored, True)
    assert abs(mirrored.mean() - 0.5) < 2.5 / np.sqrt(len(images))


def test_the_luck_of_a_picture_depends_on_its_key_alone():
    images = jnp.asarray(np.random.default_rng(0).standard_normal((16, 3, 3, 1)), jnp.float32)
    keys = jax.random.split(jax.random.key(1), 16)
    order = np.array([15, 2, 7, 3])
    np.testing.assert_array_equal(flip.apply(keys[order], images[order]), np.asarray(flip.apply(keys, images))[order])
