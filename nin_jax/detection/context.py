"""Context rectification: scores of boxes, corrected by what the whole picture says.

The slides of 2014 name it ("adaptive non-parametric rectification of outputs from both object detectors and global context")
and publish no algorithm. This one is ours: the outputs of a picture are, for each class, the probability that a classifier of
whole pictures gives it. The nearest training pictures in the space of outputs vote on which
classes are there, and the score s of a box of class k becomes

    s + strength log(p_k / q_k)

where p_k is the share of the neighbours that have class k, q_k that of all training pictures, each with one picture added
in the proportion q_k.
"""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold

NEIGHBOURS = 20
STRENGTH = 0.1
FOLDS = 5  # or fewer, a picture each


def outputs(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of the classes for whole pictures: float64 `[N, K]` of training pictures and `[M, K]` of others.

    Those of a training picture come from classifiers that have not seen it (five folds).

    Args:
      train: features `[N, D]`.
      labels: bool `[N, K]`: the classes of each picture.
      test: features `[M, D]`.
    """
    own, others = np.zeros(labels.shape), np.zeros((len(test), labels.shape[1]))
    mean, deviation = train.mean(0), train.std(0) + 1e-6
    train, test = (train - mean) / deviation, (test - mean) / deviation
    for k in range(labels.shape[1]):
        for learned, held_out in KFold(min(FOLDS, len(train)), shuffle=True, random_state=0).split(train):
            own[held_out, k] = _probabilities(train[learned], labels[learned, k], train[held_out])
        others[:, k] = _probabilities(train, labels[:, k], test)
    return own, others


def _probabilities(x: np.ndarray, y: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    if y.all() or not y.any():
        return np.full(len(wanted), float(y[0]))
    return LogisticRegression(C=1e-2, max_iter=500).fit(x, y).predict_proba(wanted)[:, 1]


def corrections(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """What is added to the scores of each class in each picture, float64 `[M, K]`.

    Args:
      train, test: outputs `[N, F]` and `[M, F]`; each column is scaled to a deviation of 1 over `train`.
      labels: bool `[N, K]`, of the training pictures.
    """
    deviation = train.std(0) + 1e-9
    distance = (((test[:, None] - train[None]) / deviation) ** 2).sum(-1)
    nearest = np.argsort(distance, axis=1, kind="stable")[:, :NEIGHBOURS]
    everywhere = labels.mean(0)
    here = (labels[nearest].sum(1) + everywhere) / (nearest.shape[1] + 1)
    return STRENGTH * np.log(np.maximum(here, 1e-6) / np.maximum(everywhere, 1e-6))
