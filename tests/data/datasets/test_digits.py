"""The digits that come with scikit-learn: the same two splits for ever."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from nin_jax.data.datasets.digits import INFO, load

SHA256 = {  # of the images' bytes and the labels' bytes, in little-endian int32
    "train": "0d9c5288f6e33780c379517635d2a09a9a36ba665165e1332d94557bc77dac86",
    "test": "3f53dde2e1e7e8a55378950dc46794171d8451ca9063e7992a75fb9672256dc1",
}


@pytest.mark.parametrize("split", INFO.splits)
def test_the_splits_are_fixed(split: str) -> None:
    images, labels = load(split)
    assert (images.shape, images.dtype) == ((INFO.splits[split], 8, 8, 1), np.uint8)
    assert (labels.shape, labels.dtype) == ((INFO.splits[split],), np.int32)
    assert hashlib.sha256(images.tobytes() + labels.astype("<i4").tobytes()).hexdigest() == SHA256[split]


def test_the_published_sizes() -> None:
    assert {split: len(load(split)[1]) for split in INFO.splits} == {"train": 1_442, "test": 355}


def test_values_use_the_whole_range() -> None:
    """17 levels, 0 to 255 in equal steps."""
    images, _ = load("train")
    assert sorted(set(images.flat)) == [round(level * 255 / 16) for level in range(17)]


def test_a_fifth_of_each_class_is_held_out() -> None:
    """Of n examples of a class, n // 5 are in the test split, and none is in both."""
    counts = {split: np.bincount(load(split)[1], minlength=10) for split in INFO.splits}
    np.testing.assert_array_equal(counts["test"], (counts["train"] + counts["test"]) // 5)


def test_the_splits_are_disjoint_and_complete() -> None:
    """Together they are scikit-learn's 1,797 digits, each once."""
    from sklearn.datasets import load_digits

    def rows(images: np.ndarray) -> list[bytes]:
        return sorted(np.round(image / 255 * 16).astype(np.uint8).tobytes() for image in images)

    together = rows(np.concatenate([load(split)[0] for split in INFO.splits]))
    assert together == rows(load_digits().images * (255 / 16))
    assert together == rows(load("train+test")[0])


def test_a_linear_classifier_learns_them() -> None:
    """Labels belong to their images: least squares on the pixels is right on more than 85 %."""
    (images, labels), (test_images, test_labels) = load("train"), load("test")
    x, y = images.reshape(len(images), -1) / 255, np.eye(10)[labels]
    weights = np.linalg.solve(x.T @ x + 1e-2 * np.eye(64), x.T @ y)
    assert np.mean((test_images.reshape(len(test_images), -1) / 255 @ weights).argmax(1) == test_labels) > 0.85
