"""The made-up pictures: always the same, and learnable."""

from __future__ import annotations

import numpy as np
import pytest

from nin_jax.data.datasets.synthetic import INFO, load


@pytest.mark.parametrize("split", INFO.splits)
def test_the_same_at_every_call(split: str) -> None:
    images, labels = load(split)
    again = load(split)
    assert (images.shape, images.dtype) == ((INFO.splits[split], *INFO.image_shape), np.uint8)
    assert (labels.shape, labels.dtype) == ((INFO.splits[split],), np.int32)
    np.testing.assert_array_equal(images, again[0])
    np.testing.assert_array_equal(labels, again[1])


def test_any_size_and_number_of_classes() -> None:
    images, labels = load("validation", size=64, classes=100)
    assert (images.shape, labels.max()) == ((256, 64, 64, 3), 99)
    blocks = images[:, :60, :60].reshape(256, 10, 6, 10, 6, 3).mean((2, 4, 5))  # ten rows of ten places
    np.testing.assert_array_equal(blocks.reshape(256, 100).argmax(1), labels)


def test_the_splits_differ_and_hold_every_class() -> None:
    assert not np.array_equal(load("train[:256]")[0], load("test")[0])
    assert all(set(load(split)[1]) == set(range(INFO.classes)) for split in INFO.splits)


def test_a_linear_classifier_learns_them() -> None:
    """Ridge regression on the pixels is right on more than 90 % of the test split."""
    (images, labels), (test_images, test_labels) = load("train"), load("test")
    flat = images.reshape(len(images), -1) / 255
    mean = flat.mean(0)
    x, y = flat - mean, np.eye(INFO.classes)[labels]
    weights = np.linalg.solve(x.T @ x + 10 * np.eye(x.shape[1]), x.T @ y)
    guess = ((test_images.reshape(len(test_images), -1) / 255 - mean) @ weights).argmax(1)
    assert np.mean(guess == test_labels) > 0.9
