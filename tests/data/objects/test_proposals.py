"""Proposals of OpenCV's selective search, where the extra is installed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from nin_jax.data.objects import proposals
from nin_jax.data.objects.boxes import iou
from nin_jax.errors import UserError


def test_selective_search_finds_what_stands_out() -> None:
    pytest.importorskip("cv2.ximgproc")
    image = np.random.default_rng(0).integers(100, 130, (120, 160, 3)).astype(np.uint8)
    image[30:80, 40:110] = (220, 30, 40)
    found = proposals.selective_search(image, most=50)
    assert 1 < len(found) <= 50
    assert iou(np.array([[40.0, 30, 110, 80]]), found).max() > 0.9
    assert (found[:, :2] >= 0).all()
    assert (found[:, 2:] <= [160, 120]).all()
    np.testing.assert_array_equal(proposals.selective_search(image, most=50), found)


@pytest.mark.parametrize(
    "rows",
    ["[[0, 1, 2, 3, 0.5], [1, 2, 3, 4, 0.5], [1, 2, 5, 6, 7], [2, 3, 7, 8, 9]]", "[0, 1, 2, 3]", "null", "[[1, 2]]"],
)
def test_rows_of_a_file_have_four_numbers(rows: str, tmp_path: Path) -> None:
    """Four rows of five numbers, the last one a score, would be five wrong boxes."""
    file = tmp_path / "boxes.json"
    file.write_text(f'{{"a": {rows}}}')
    with pytest.raises(UserError, match=r"boxes\.json: not \{.NAME.: \[\[x0, y0, x1, y1\]"):
        proposals.from_file(file)
    file.write_text('{"a": [[0, 1, 2, 3]], "b": []}')
    assert [boxes.tolist() for boxes in proposals.from_file(file).values()] == [[[0, 1, 2, 3]], []]


def test_without_opencv_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UserError, match=r"nin_jax\[detection\]"):
        proposals.selective_search(np.zeros((32, 32, 3), np.uint8))
