"""Hypotheses against brute force: the normalised cut of all possible ones, the greedy choice, the images of boxes."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from PIL import Image

from nin_jax.data.objects import hypotheses
from nin_jax.data.objects.boxes import area, iou
from nin_jax.errors import UserError


def near(centre: tuple[float, float], count: int, random: np.random.Generator) -> np.ndarray:
    """Boxes of about 60 x 60 around a point."""
    middle = np.array(centre) + random.uniform(-12, 12, (count, 2))
    half = random.uniform(26, 34, (count, 2))
    return np.concatenate([middle - half, middle + half], 1)


@pytest.mark.parametrize("seed", range(5))
def test_two_clusters_are_the_least_normalised_cut_of_all(seed):
    """cut(A, B) / volume(A) + cut(A, B) / volume(B) over all 127 ways to part eight boxes."""
    random = np.random.default_rng(seed)
    boxes = np.concatenate([near((60, 60), 5, random), near((105, 70), 3, random)])[random.permutation(8)]
    share = np.maximum(iou(boxes, boxes), hypotheses.CONNECTED)

    def cost(inside: np.ndarray) -> float:
        cut = share[np.ix_(inside, ~inside)].sum()
        return cut / share[inside].sum() + cut / share[~inside].sum()

    every = [np.array((True, *rest)) for rest in itertools.product((True, False), repeat=7) if not all(rest)]
    best = min(every, key=cost)
    labels = hypotheses.normalised_cut(share, 2)
    assert np.array_equal(labels == labels[0], best)


def test_the_best_of_each_cluster_or_those_that_cover_it():
    random = np.random.default_rng(0)
    groups = [near((100.0 * i + 60, 60), 6, random) for i in range(3)]
    boxes = np.concatenate(groups)[order := random.permutation(18)]
    for ranked in (True, False):
        chosen = hypotheses.choose(boxes, 3, 2, ranked=ranked)
        assert np.array_equal(chosen, hypotheses.choose(boxes, 3, 2, ranked=ranked))
        found = {int(order[np.flatnonzero((boxes == pair[0]).all(1))[0]]) // 6 for pair in chosen.reshape(3, 2, 4)}
        assert found == {0, 1, 2}
        for pair in chosen.reshape(3, 2, 4):
            group = order[np.flatnonzero((boxes == pair[0]).all(1))[0]] // 6
            members = boxes[order // 6 == group]
            if ranked:
                assert np.array_equal(pair, members[:2])
            else:
                share = iou(members, members)
                first = members[share.sum(1).argmax()]
                second = max(members, key=lambda m: np.maximum(iou(m[None], members), iou(first[None], members)).sum())
                assert np.array_equal(pair, [first, second])


def test_small_and_elongated_boxes_are_dropped_and_few_are_repeated():
    boxes = np.array([[0, 0, 29, 30], [0, 0, 200, 49], [0, 0, 49, 200], [5, 5, 35, 35], [0, 0, 100, 25]], np.float64)
    chosen = hypotheses.choose(boxes, 4, 2, ranked=True)
    assert chosen.shape == (8, 4)
    assert {tuple(box) for box in chosen} == {(5, 5, 35, 35), (0, 0, 100, 25)}
    assert np.array_equal(hypotheses.choose(boxes[:1], 2, 1, ranked=True), boxes[[0, 0]])  # better than none


def test_a_bag_has_the_images_of_its_boxes_one_below_the_other(tmp_path):
    image = np.random.default_rng(1).integers(0, 256, (40, 50, 3), np.uint8)
    found = hypotheses.cut_out(image, [np.array([0, 0, 8, 8]), np.array([10, 20, 18, 28]), np.array([0, 0, 50, 40])], 8)
    assert found.shape == (24, 8, 3)
    np.testing.assert_array_equal(found[:16], np.concatenate([image[:8, :8], image[20:28, 10:18]]))
    whole = np.asarray(Image.fromarray(image).resize((8, 8), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(found[16:], whole)
    np.testing.assert_array_equal(hypotheses.bag(image, 8, 0, 1, "windows", 900.0), whole)
    bag = hypotheses.bag(image, 8, 3, 2, "windows", 50.0)
    assert bag.shape == hypotheses.shape(8, 3, 3, 2)
    (tmp_path / "boxes.json").write_text(json.dumps({"a": [[10, 20, 18, 28]]}))
    file = str(tmp_path / "boxes.json")
    np.testing.assert_array_equal(hypotheses.bag(image, 8, 1, 1, file, 0.0, "a"), image[20:28, 10:18])
    with pytest.raises(UserError, match="has no boxes of b"):
        hypotheses.bag(image, 8, 1, 1, file, 0.0, "b")


def test_windows_of_a_picture_are_not_all_of_one_size():
    chosen = hypotheses.of_windows(96, 96, 10, 3, 400.0)
    assert chosen.shape == (30, 4)
    assert area(chosen).min() >= 400
    assert chosen.min() >= 0
    assert chosen.max() <= 96
    assert len(np.unique(np.round(area(chosen)))) > 3
