"""Boxes: float64 `[N, 4]` of (x0, y0, x1, y1), in pixels from the upper left corner; x1 and y1 are the first ones outside.

The pixels 1 to 10 of VOC, both included, are thus x0 = 0 and x1 = 10.
"""

from __future__ import annotations

import numpy as np


def area(boxes: np.ndarray) -> np.ndarray:
    """float64 `[N]`, in pixels squared; 0 for an empty box."""
    return np.prod(np.maximum(boxes[..., 2:] - boxes[..., :2], 0), axis=-1)


def intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Area that each of `a` `[N, 4]` shares with each of `b` `[M, 4]`: float64 `[N, M]`."""
    a, b = a[:, None], b[None]
    return area(np.concatenate([np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])], axis=-1))


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of each of `a` `[N, 4]` and each of `b` `[M, 4]`: float64 `[N, M]`, 0 to 1."""
    shared = intersection(a, b)
    union = area(a)[:, None] + area(b)[None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def non_maximum_suppression(boxes: np.ndarray, scores: np.ndarray, overlap: float = 0.3) -> np.ndarray:
    """Indices of the boxes that are kept, the highest score first: none overlaps a better one by more than `overlap` (IoU).

    Of equal scores the first one counts as better. R-CNN uses an overlap of 0.3.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = boxes[order]
    x0, y0, x1, y1 = (np.ascontiguousarray(corner) for corner in ranked.T)  # `iou` by columns takes a third of the time
    areas, left, kept = area(ranked), np.arange(len(order)), []
    while left.size:
        best, left = left[0], left[1:]
        kept.append(order[best])
        width = np.minimum(x1[best], x1[left]) - np.maximum(x0[best], x0[left])
        height = np.minimum(y1[best], y1[left]) - np.maximum(y0[best], y0[left])
        shared = np.maximum(width, 0) * np.maximum(height, 0)
        union = areas[best] + areas[left] - shared
        left = left[np.divide(shared, union, out=np.zeros_like(shared), where=union > 0) <= overlap]
    return np.array(kept, np.int64)


def clip(boxes: np.ndarray, width: float, height: float) -> np.ndarray:
    """The parts of boxes that lie inside a picture."""
    return np.clip(boxes, 0, np.array([width, height, width, height], np.float64))


def to_offsets(boxes: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """What box regression predicts (Girshick et al. 2014, appendix C), float64 `[N, 4]`, for boxes P and their targets G.

        t_x = (G_x - P_x) / P_w,   t_y = (G_y - P_y) / P_h,   t_w = log(G_w / P_w),   t_h = log(G_h / P_h)

    with centres x, y and sizes w, h.
    """
    (p_centre, p_size), (g_centre, g_size) = _centred(boxes), _centred(targets)
    return np.concatenate([(g_centre - p_centre) / p_size, np.log(g_size / p_size)], axis=-1)


def from_offsets(boxes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The boxes that offsets lead to: the inverse of `to_offsets`."""
    centre, size = _centred(boxes)
    centre, size = centre + offsets[..., :2] * size, size * np.exp(offsets[..., 2:])
    return np.concatenate([centre - size / 2, centre + size / 2], axis=-1)


def _centred(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
