"""A trained detector: a linear classifier and a box regression for each class, with what makes the features of a picture."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nin_jax import storage
from nin_jax.data.objects.boxes import clip
from nin_jax.detection import config as config_lib
from nin_jax.detection import svm
from nin_jax.detection.config import Detection
from nin_jax.detection.store import extractors, proposer
from nin_jax.errors import UserError, one_line
from nin_jax.training.average_precision import Found

FILE = "detector.npz"


class Machines(NamedTuple):
    """What was learned of each class, in order.

    Attributes:
      classes: their names.
      scales: float32 `[P]`, what the features of each network are multiplied by.
      linear: the classifiers.
      regression: of boxes; None for classes with too few of them.
    """

    classes: tuple[str, ...]
    scales: np.ndarray
    linear: Sequence[svm.Linear]
    regression: Sequence[svm.Regression | None]

    def __call__(self, features: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> list[Found]:
        """The detections of each class among the proposals of a picture, the most certain ones first.

        Args:
          features: float32 `[N, D]`, scaled.
          boxes: float64 `[N, 4]`.
          size: width and height of the picture.
        """
        found = []
        for linear, regression in zip(self.linear, self.regression, strict=True):
            kept, scores = svm.suppressed(linear, features, boxes)
            moved = boxes[kept] if regression is None else clip(regression(features[kept], boxes[kept]), *size)
            found.append(Found(moved, scores))
        return found

    def write(self, folder: Path) -> None:
        """Into a file of a run directory. Raises `StorageFailed`."""
        length = len(self.linear[0].weights)
        none = svm.Regression(np.full((length, 4), np.nan), np.full(4, np.nan))
        regression = [r or none for r in self.regression]
        file = io.BytesIO()
        np.savez(
            file,
            classes=np.array(self.classes),
            scales=self.scales,
            weights=np.stack([of.weights for of in self.linear]),
            biases=np.array([of.bias for of in self.linear]),
            coefficients=np.stack([r.coefficients for r in regression]),
            constants=np.stack([r.constant for r in regression]),
        )
        storage.write_whole(folder / FILE, file.getvalue())


def read(folder: Path) -> tuple[Detection, Machines]:
    """What a run of `detection.main` has learned. Raises `UserError`."""
    try:
        config = config_lib.read(json.loads((folder / "config.json").read_text()))
        with np.load(folder / FILE, allow_pickle=False) as arrays:
            linear = [svm.Linear(w, float(b)) for w, b in zip(arrays["weights"], arrays["biases"], strict=True)]
            pairs = zip(arrays["coefficients"], arrays["constants"], strict=True)
            regression = [None if np.isnan(constant).any() else svm.Regression(of, constant) for of, constant in pairs]
            return config, Machines(tuple(map(str, arrays["classes"])), arrays["scales"], linear, regression)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{folder} is not a finished run of detection: {one_line(error)}") from error


class Detector:
    """A trained detector as a function of pictures. Raises `UserError` for a folder that is no run of detection.

    Scores are those of the classifiers, without context, whose neighbours are training pictures.

    Args:
      folder: the run directory.
    """

    def __init__(self, folder: Path):
        self.config, self.machines = read(folder)
        if self.config.proposals.source not in ("windows", "selective_search"):
            raise UserError(f"{folder}: its proposals are from a file, which says nothing of other pictures")
        self.propose = proposer(self.config)
        self.extractors = [extractor for _, extractor in extractors(self.config)]

    def __call__(self, image: np.ndarray) -> list[Found]:
        """The detections of each of `machines.classes` in a picture uint8 `[H, W, 3]`."""
        boxes = self.propose(image, "")
        parts = [of(image, boxes) * scale for of, scale in zip(self.extractors, self.machines.scales, strict=True)]
        return self.machines(np.concatenate(parts, axis=1), boxes, (image.shape[1], image.shape[0]))
