"""Linear classifiers of regions (R-CNN, Girshick et al. 2014): one a class, with hard-negative mining; box regression."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from sklearn.linear_model import Ridge
from sklearn.svm import LinearSVC

from nin_jax.data.objects import boxes as boxes_lib
from nin_jax.errors import UserError

NORM = 20.0  # the mean length of features that C goes with
C, BIAS, POSITIVE = 1e-3, 10, 2.0  # cost, scale of the constant feature, weight of positive examples
HARD, EASY = -1.0001, -1.2  # scores from which a negative is learned from, and under which it is forgotten
REFIT = 2000  # new hard negatives
REGRESSION, REGRESSED_FROM = 1000.0, 0.6  # ridge penalty; the overlap from which a proposal is learned from
NEGATIVE_BELOW = 0.3  # overlap with every object of the class


class Linear(NamedTuple):
    """Scores `features @ weights + bias`; weights float32 `[D]`."""

    weights: np.ndarray
    bias: float

    def __call__(self, features: np.ndarray) -> np.ndarray:
        return features @ self.weights + self.bias


def train(positives: np.ndarray, pictures: Iterable[np.ndarray]) -> Linear:
    """The classifier of one class: its objects against what is not one of them.

    Args:
      positives: features float32 `[P, D]` of its objects, of mean length `NORM`.
      pictures: the features of the negatives of each picture, one picture at a time, once.
    """
    negatives, new, fitted = np.zeros((0, positives.shape[1]), np.float32), 0, None
    for features in pictures:
        hard = features if fitted is None else features[fitted(features) > HARD]
        negatives, new = np.concatenate([negatives, hard]), new + len(hard)
        if new >= REFIT:
            fitted, new = fit(positives, negatives), 0
            negatives = negatives[fitted(negatives) > EASY]
    return fit(positives, negatives) if new or fitted is None else fitted


def fit(positives: np.ndarray, negatives: np.ndarray) -> Linear:
    if not len(negatives):
        raise UserError(
            f"every proposal in the training pictures overlaps an object of a class by {NEGATIVE_BELOW} or more, or there is none: "
            "nothing is left to tell its objects from"
        )
    x = np.concatenate([positives, negatives])
    y = np.repeat([1, 0], [len(positives), len(negatives)])
    # The gap to the best solution matters less than time: 3,000 rounds are far more than it takes at this C.
    machine: Any = LinearSVC(
        C=C, loss="hinge", intercept_scaling=BIAS, class_weight={1: POSITIVE}, max_iter=3000, tol=1e-3, random_state=0
    )
    machine.fit(x, y)
    return Linear(machine.coef_[0].astype(np.float32), float(machine.intercept_[0]))


class Regression(NamedTuple):
    """Box regression of one class: `boxes.to_offsets` from features, with whitened targets."""

    coefficients: np.ndarray
    constant: np.ndarray

    def __call__(self, features: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        offsets = features @ self.coefficients + self.constant
        offsets[:, 2:] = np.clip(offsets[:, 2:], -2, 2)  # at most 7 times as large
        return boxes_lib.from_offsets(boxes, offsets)


def regress(features: np.ndarray, boxes: np.ndarray, targets: np.ndarray) -> Regression | None:
    """Box regression from proposals `[N, 4]` near objects to these objects `[N, 4]`; None with fewer than ten of them."""
    if len(boxes) < 10:
        return None
    offsets = boxes_lib.to_offsets(boxes, targets)
    mean, deviation = offsets.mean(0), offsets.std(0) + 1e-9
    ridge: Any = Ridge(alpha=REGRESSION).fit(features, (offsets - mean) / deviation)
    return Regression((ridge.coef_.T * deviation).astype(np.float64), ridge.intercept_ * deviation + mean)


def suppressed(
    score: Callable[[np.ndarray], np.ndarray], features: np.ndarray, boxes: np.ndarray, most: int = 100
) -> tuple[np.ndarray, np.ndarray]:
    """Indices and scores of the detections of one class in one picture, after non-maximum suppression, `most` at most."""
    scores = score(features)
    best = np.argsort(-scores, kind="stable")[: 20 * most]  # the others would not be among the best after it
    kept = best[boxes_lib.non_maximum_suppression(boxes[best], scores[best])][:most]
    return kept, scores[kept]
