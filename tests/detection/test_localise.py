"""Boxes from class maps."""

from __future__ import annotations

import numpy as np

from nin_jax.detection import localise


def test_the_box_of_a_map_is_that_of_its_largest_region() -> None:
    evidence = np.zeros((20, 30), np.float32)
    evidence[2:4, 3:5] = 1.0  # the strongest, and small
    evidence[10:16, 12:20] = 0.6
    evidence[12, 20:25] = 0.39  # below the threshold
    assert localise.box(evidence, 0.4).tolist() == [12, 10, 20, 16]
    assert localise.box(evidence, 0.7).tolist() == [3, 2, 5, 4]
    assert localise.box(np.ones((20, 30)), 0.4).tolist() == [0, 0, 30, 20]
    assert localise.point(evidence) == (3.5, 2.5)
    assert localise.hits((3.5, 2.5), np.array([[3.0, 2, 5, 4]]))
    assert not localise.hits((5.0, 2.5), np.array([[3.0, 2, 5, 4]]))
