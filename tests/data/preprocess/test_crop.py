"""Random translation: which window was cut is found out and compared with NumPy's slice of the padded picture."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nin_jax.data.preprocess import crop

HEIGHT, WIDTH = 5, 6


def cut(n: int, pad: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """n copies of one picture without equal or zero pixels, cut at random; and all windows of it, (y, x) in order."""
    image = np.arange(1, HEIGHT * WIDTH * 2 + 1, dtype=np.float32).reshape(HEIGHT, WIDTH, 2)
    keys = jax.random.split(jax.random.key(seed), n)
    result = np.asarray(crop.apply(keys, jnp.asarray(np.broadcast_to(image, (n, *image.shape))), pad=pad))
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    shifts = range(2 * pad + 1)
    return result, np.stack([padded[y : y + HEIGHT, x : x + WIDTH] for y in shifts for x in shifts])


@pytest.mark.parametrize("pad", [1, 2])
def test_cuts_every_window_of_the_zero_padded_picture_equally_often(pad):
    """Each result is exactly one of the windows; 4,000 of them fall on all (2 pad + 1)^2 as a uniform law says."""
    result, windows = cut(4000, pad)
    same = (result[:, None] == windows[None]).all((2, 3, 4))
    np.testing.assert_array_equal(same.sum(1), 1)
    counts = same.sum(0)
    expected = 4000 / len(windows)
    assert ((counts - expected) ** 2 / expected).sum() < 2 * len(windows) + 10  # chi squared, mean len - 1


def test_the_default_is_four_pixels():
    """Offsets 0 and 8 occur both ways, and none beyond."""
    image = jnp.zeros((3000, 9, 9, 1)).at[:, 4, 4].set(1.0)
    places = np.argwhere(np.asarray(crop.apply(jax.random.split(jax.random.key(0), 3000), image))[..., 0])
    assert len(places) == 3000
    for axis in (1, 2):
        assert set(places[:, axis]) == set(range(9))


def test_no_padding_changes_nothing():
    result, windows = cut(3, 0)
    np.testing.assert_array_equal(result, np.broadcast_to(windows, result.shape))


def test_the_window_of_a_picture_depends_on_its_key_alone():
    images = jnp.asarray(np.random.default_rng(0).standard_normal((8, 5, 5, 3)), jnp.float32)
    keys = jax.random.split(jax.random.key(1), 8)
    whole = np.asarray(crop.apply(keys, images, pad=2))
    order = np.array([6, 1, 3])
    np.testing.assert_array_equal(crop.apply(keys[order], images[order], pad=2), whole[order])
