"""Proposals: boxes in which an object might be. From a file, from sliding windows, or from OpenCV's selective search."""

from __future__ import annotations

import ctypes
import json
import math
from pathlib import Path

import numpy as np

from nin_jax.errors import UserError, one_line

ASPECTS = (1 / 2, 2 / 3, 1.0, 3 / 2, 2.0)  # width over height


def sliding_windows(
    width: int, height: int, *, smallest: float = 0.2, scales: int = 5, stride: float = 0.35
) -> np.ndarray:
    """Boxes of several sizes and shapes, evenly over a picture: float64 `[N, 4]`.

    Args:
      width, height: of the picture.
      smallest: the smallest size, as a share of the picture's shorter side; the largest is that side.
      scales: how many sizes, in equal ratios.
      stride: from a window to the next one, in windows.
    """
    found = []
    for size in min(width, height) * np.geomspace(1.0, smallest, scales):
        for aspect in ASPECTS:
            w, h = min(width, size * math.sqrt(aspect)), min(height, size / math.sqrt(aspect))
            x, y = (np.linspace(0, free, 1 + math.ceil(free / step)) for free, step in ((width - w, stride * w), (height - h, stride * h)))  # fmt: skip
            left, top = (v.ravel() for v in np.meshgrid(x, y))
            found.append(np.stack([left, top, left + w, top + h], axis=1))
    return np.unique(np.concatenate(found), axis=0)


def selective_search(image: np.ndarray, most: int = 2000) -> np.ndarray:
    """OpenCV's selective search, fast mode (Uijlings et al. 2013), its best first: float64 `[N, 4]`.

    Its boxes are not those of the authors' program. Needs the extra `detection`. Raises `UserError` without it.

    Args:
      image: uint8 `[H, W, 3]`, RGB.
      most: how many boxes at most.
    """
    try:
        import cv2  # pyright: ignore[reportMissingImports]

        search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    except (ImportError, AttributeError) as error:
        raise UserError('proposals="selective_search" needs the extra: pip install "nin_jax[detection]"') from error
    ctypes.CDLL(None).srand(0)  # OpenCV draws the order of its boxes by C's rand(), not by its own generator
    search.setBaseImage(np.ascontiguousarray(image[..., ::-1]))
    search.switchToSelectiveSearchFast()
    found = np.asarray(search.process()[:most], np.float64).reshape(-1, 4)  # x, y, width, height
    return np.concatenate([found[:, :2], found[:, :2] + found[:, 2:]], axis=1)


def from_file(file: Path) -> dict[str, np.ndarray]:
    """Proposals of each picture, from a JSON file {"000001": [[x0, y0, x1, y1], ...], ...}. Raises `UserError`."""
    try:
        content = json.loads(file.read_text())
        found = {str(name): np.array(rows, np.float64).reshape(len(rows), 4) for name, rows in content.items()}
    except OSError as error:
        raise UserError(f"proposals={file}: {one_line(error)}") from error
    except (ValueError, AttributeError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f'proposals={file}: not {{"NAME": [[x0, y0, x1, y1], ...]}}: {one_line(error)}') from error
    for name, boxes in found.items():
        if not np.isfinite(boxes).all() or (boxes[:, :2] >= boxes[:, 2:]).any():
            raise UserError(f"proposals={file}: a box of {name} is empty or no box")
    return found
