"""The measures of detection: which boxes are right, and the average precision of a ranking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from nin_jax.data.objects.boxes import iou
from nin_jax.errors import UserError


class Truth(NamedTuple):
    """The objects of one class in one picture.

    Attributes:
      boxes: float64 `[N, 4]`, see `boxes`.
      difficult: bool `[N]`: objects that neither count as found nor as missed.
    """

    boxes: np.ndarray
    difficult: np.ndarray


class Found(NamedTuple):
    """The detections of one class in one picture: boxes `[N, 4]` and scores `[N]`."""

    boxes: np.ndarray
    scores: np.ndarray


class Curve(NamedTuple):
    """Precision and recall over a ranking, float64 `[N]`: of the best detection, of the two best, and so on."""

    precision: np.ndarray
    recall: np.ndarray


def precision_recall(
    truth: Mapping[str, Truth], found: Mapping[str, Found], rule: Literal["voc", "ilsvrc"] = "voc"
) -> Curve:
    """Precision and recall of the detections of one class.

    Over all pictures, detections are taken in the order of falling scores. That of a difficult object counts as nothing.

    voc: each belongs to the object of its picture that it overlaps most (IoU; the first of equal ones). It is right if it
      overlaps it by 0.5 or more and is the first to do so. A second one of the same object is wrong, even if another
      object is still free.
    ilsvrc: each belongs to the object that it overlaps most among those that are still free and that it overlaps by
      `ilsvrc_overlap` or more.

    Args:
      truth: by picture; pictures without an object of the class may be left out.
      found: by picture.
    """
    empty = Truth(np.zeros((0, 4)), np.zeros(0, bool))
    parts = [(of.scores, *judged(truth.get(picture, empty), of, rule)) for picture, of in found.items()]
    objects = sum(int((~of.difficult).sum()) for of in truth.values())
    if not parts:
        return Curve(np.zeros(0), np.zeros(0))
    scores, right, counted = (np.concatenate(column) for column in zip(*parts, strict=True))
    return _curve(scores[counted], right[counted], objects)


def judged(truth: Truth, found: Found, rule: str) -> tuple[np.ndarray, np.ndarray]:
    """Which detections of a class in a picture are right, and which count: bool `[N]` each; see `precision_recall`."""
    share = iou(np.asarray(found.boxes, np.float64).reshape(-1, 4), truth.boxes)
    enough = np.full(len(truth.boxes), 0.5) if rule == "voc" else ilsvrc_overlap(truth.boxes)
    taken = np.zeros(len(truth.boxes), bool)
    right, counted = np.zeros(len(share), bool), np.ones(len(share), bool)
    for i in np.argsort(-np.asarray(found.scores), kind="stable"):
        rivals = share[i] if rule == "voc" else np.where(~taken & (share[i] >= enough), share[i], -1.0)
        own = int(rivals.argmax()) if rivals.size else -1
        if own < 0 or rivals[own] < enough[own]:
            continue
        counted[i] = not truth.difficult[own]
        right[i] = counted[i] and not taken[own]
        taken[own] |= counted[i]
    return right, counted


def eleven_points(curve: Curve) -> float:
    """Average precision as VOC 2007 takes it: the mean over t = 0, 0.1, ..., 1 of the best precision at a recall of t or more."""
    # Compared exactly, as everybody does: three of ten objects found are less than linspace's fourth point.
    best = [curve.precision[curve.recall >= t].max(initial=0.0) for t in np.linspace(0, 1, 11)]
    return float(np.mean(best))


def under_curve(curve: Curve) -> float:
    """Average precision as VOC has taken it since 2010: the area under the best precision at each recall or more."""
    recall = np.concatenate([[0.0], curve.recall, [1.0]])
    precision = np.concatenate([[0.0], curve.precision, [0.0]])
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall) * precision[1:]))


def ilsvrc_overlap(truth: np.ndarray) -> np.ndarray:
    """The overlap that ILSVRC asks for, float64 `[N]`: 0.5, and less for small objects of w x h pixels.

        min(0.5, w h / ((w + 10) (h + 10)))

    (Russakovsky et al. 2015, section 4.3: a box may be off by 5 pixels on each side.)
    """
    size = truth[:, 2:] - truth[:, :2]
    return np.minimum(0.5, np.prod(size, axis=1) / np.prod(size + 10, axis=1))


def ranking(scores: Sequence[float] | np.ndarray, labels: Sequence[int] | np.ndarray) -> Curve:
    """Precision and recall of pictures ranked by a score, as in VOC's classification task.

    Args:
      scores: of each picture.
      labels: 1: the class is in the picture, 0: only difficult objects of it are, which counts as nothing; -1: it is not.
    """
    values, kinds = np.asarray(scores, np.float64), np.asarray(labels)
    right = kinds[kinds != 0] > 0
    return _curve(values[kinds != 0], right, int(right.sum()))


def _curve(scores: np.ndarray, right: np.ndarray, objects: int) -> Curve:
    """Of detections that count, which of them are `right`, bool `[N]`, and the number of `objects` to be found."""
    hits = np.cumsum(right[np.argsort(-scores, kind="stable")])
    return Curve(hits / np.arange(1, len(hits) + 1), hits / objects if objects else np.zeros(len(hits)))


def mean_precision(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Means of the average precision, 0 to 1, over the classes that some picture has.

    Args:
      scores: float `[N, K]`, of N pictures.
      labels: int32 `[N, K]`, see `ranking`.

    Returns:
      "map": that of VOC 2007 (11 points), and "area_map": that of VOC 2010 and later. Raises `UserError` if no picture has
      any class.
    """
    curves = [ranking(scores[:, k], labels[:, k]) for k in range(labels.shape[1]) if (labels[:, k] > 0).any()]
    if not curves:
        raise UserError("no picture has a label, so there is no average precision")
    return {
        name: float(np.mean([of(c) for c in curves]))
        for name, of in (("map", eleven_points), ("area_map", under_curve))
    }
