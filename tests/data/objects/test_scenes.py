"""Composed scenes."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from nin_jax.data.datasets import digits, synthetic
from nin_jax.data.objects.boxes import intersection
from nin_jax.data.objects.scenes import scene


@pytest.mark.parametrize("data", [synthetic, digits])
def test_a_box_holds_its_object_and_none_another(data: object) -> None:
    images, labels = data.load("test[:50]")  # pyright: ignore[reportAttributeAccessIssue]
    for number in range(10):
        made = scene(images, labels, number, side=64, objects=(1, 4), scale=(1.0, 1.0))
        assert made.image.shape == (64, 64, images.shape[-1])
        assert 1 <= len(made.boxes) <= 4
        shared = intersection(made.boxes, made.boxes)
        assert not (shared - np.diag(np.diag(shared))).any()
        for box, label in zip(made.boxes.astype(int), made.labels, strict=True):
            inside = made.image[box[1] : box[3], box[0] : box[2]]
            assert any(np.array_equal(inside, image) for image in images[labels == label])


def test_a_scene_is_a_function_of_seed_and_number() -> None:
    images, labels = synthetic.load("test[:50]")
    one, again, other = (scene(images, labels, n, seed=s, side=48) for n, s in ((3, 1), (3, 1), (3, 2)))
    np.testing.assert_array_equal(one.image, again.image)
    np.testing.assert_array_equal(one.boxes, again.boxes)
    assert not np.array_equal(one.image, other.image)


def test_objects_are_scaled() -> None:
    images, labels = synthetic.load("test[:5]")
    made = scene(images, labels, 0, side=64, objects=(1, 1), scale=(2.0, 2.0))
    [box] = made.boxes.astype(int)
    assert box[2] - box[0] == 32
    inside = made.image[box[1] : box[3], box[0] : box[2]]
    enlarged = [np.asarray(Image.fromarray(i).resize((32, 32), Image.Resampling.BICUBIC)) for i in images]
    assert any(np.array_equal(inside, image) for image in enlarged)
