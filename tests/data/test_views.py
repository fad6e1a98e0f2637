"""Windows of a picture: inside it, where the protocols say, and few different sizes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nin_jax.data import views

sides = st.integers(1, 5000)


@given(height=sides, width=sides)
def test_a_scaled_picture_has_that_short_side_and_its_own_shape(height, width):
    h, w = views.scaled(height, width, 256)
    assert min(h, w) == 256
    assert abs(h * width - w * height) <= max(height, width)  # the long side is rounded to a pixel


@pytest.mark.parametrize("name", views.NAMES)
@given(height=sides, width=sides)
def test_windows_lie_inside_and_are_of_one_size(name, height, width):
    h, w = views.scaled(height, width, 256)
    found = views.windows(name, h, w, 224)
    assert all(y >= 0 and x >= 0 and y + a <= h and x + b <= w for y, x, a, b in found)
    assert len({window[2:] for window in found}) == 1


@given(y=st.floats(0, 1, exclude_max=True), x=st.floats(0, 1, exclude_max=True))
def test_a_random_window_lies_inside(y, x):
    top, left, height, width = views.random_window((y, x), 256, 300, 224)
    assert 0 <= top <= 32
    assert 0 <= left <= 76
    assert (height, width) == (224, 224)


def test_places_of_a_picture_of_256_x_400():
    def corners(name, *shape):
        return [window[:2] for window in views.windows(name, *shape, 224)]

    assert corners("center", 256, 400) == [(16, 88)]
    assert corners("3-view", 256, 400) == [(16, 0), (16, 88), (16, 176)]
    assert corners("3-view", 400, 256) == [(0, 16), (88, 16), (176, 16)]
    # The central square goes from column 72 to 328.
    assert corners("10-crop", 256, 400) == [(0, 72), (0, 104), (32, 72), (32, 104), (16, 88)]
    assert views.windows("dense", 256, 400, 224) == [(0, 8, 256, 384)]


def test_dense_has_few_sizes():
    found = {views.windows("dense", *views.scaled(h, 500, 256), 224)[0][2:] for h in range(100, 5000)}
    assert len(found) <= 25
    assert {min(shape) for shape in found} == {256}
    assert max(map(max, found)) == 1024
