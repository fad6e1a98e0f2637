"""Boxes, against the pixels that they cover."""

from __future__ import annotations

import numpy as np

from nin_jax.data.objects import boxes


def random_boxes(count: int, seed: int, side: int = 20) -> np.ndarray:
    """Boxes of whole pixels."""
    corners = np.random.default_rng(seed).integers(0, side, (count, 2, 2))
    low, high = corners.min(1), corners.max(1) + 1
    return np.concatenate([low, high], axis=1).astype(np.float64)


def covered(box: np.ndarray, side: int = 20) -> set[tuple[int, int]]:
    x0, y0, x1, y1 = box.astype(int)
    return {(x, y) for x in range(x0, x1) for y in range(y0, y1) if x < side + 1}


def test_iou_counts_pixels() -> None:
    a, b = random_boxes(12, 0), random_boxes(9, 1)
    counted = [[len(covered(p) & covered(q)) / len(covered(p) | covered(q)) for q in b] for p in a]
    np.testing.assert_allclose(boxes.iou(a, b), counted, atol=1e-15)
    assert boxes.iou(np.zeros((1, 4)), np.zeros((1, 4))) == 0  # empty boxes


def test_suppression_keeps_what_no_better_box_overlaps() -> None:
    for seed in range(20):
        found = random_boxes(30, seed)
        scores = np.random.default_rng(seed).integers(0, 10, 30).astype(float)  # many equal ones
        expected: list[int] = []
        for i in sorted(range(30), key=lambda i: (-scores[i], i)):
            shares = [
                len(covered(found[i]) & covered(found[j])) / len(covered(found[i]) | covered(found[j]))
                for j in expected
            ]
            if all(share <= 0.3 for share in shares):
                expected.append(i)
        assert boxes.non_maximum_suppression(found, scores).tolist() == expected


def test_offsets_lead_to_their_targets() -> None:
    a, b = random_boxes(12, 2), random_boxes(12, 3)
    np.testing.assert_allclose(boxes.from_offsets(a, boxes.to_offsets(a, b)), b, atol=1e-12)
    moved = boxes.to_offsets(
        np.array([[0.0, 0, 10, 20]]), np.array([[5.0, 0, 25, 20]])
    )  # 10 to the right, twice as wide
    np.testing.assert_allclose(moved, [[1, 0, np.log(2), 0]], atol=1e-15)
