"""R-CNN (Girshick et al. 2014) as the slides of 2014 use it: proposals, features, a linear classifier a class, its measure.

Proposals and features are kept by a `Store`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nin_jax.console import say, track
from nin_jax.data.objects.boxes import iou
from nin_jax.detection import context, svm
from nin_jax.detection.config import Detection
from nin_jax.detection.detector import Machines
from nin_jax.detection.pictures import Pictures
from nin_jax.detection.store import Store
from nin_jax.errors import UserError
from nin_jax.training.average_precision import Curve, Found, Truth, eleven_points, precision_recall, under_curve


class Result(NamedTuple):
    """Detections of a class in the test pictures, and their measures.

    Attributes:
      name: of the class.
      found: by picture.
      curve: precision and recall in the test pictures.
      ap, area: average precision of 2007 and of 2010, 0 to 1; None without an object in the test pictures.
      objects: in the training and in the test pictures, those that are not difficult.
    """

    name: str
    found: dict[str, Found]
    curve: Curve
    ap: float | None
    area: float | None
    objects: tuple[int, int]


def counted(pictures: Pictures) -> np.ndarray:
    """Objects of each class that are not difficult, `[K]`."""
    labels = [objects.labels[~objects.difficult] for objects in pictures.listed]
    return np.bincount(np.concatenate(labels), minlength=len(pictures.classes))


def classes(config: Detection, train: Pictures, test: Pictures) -> list[int]:
    """The classes with enough training boxes. Raises `UserError` if there is none, or none of them is in a test picture."""
    counts, there = counted(train), counted(test)
    chosen = [k for k in range(len(train.classes)) if counts[k] >= config.fewest_boxes]
    if not chosen:
        raise UserError(
            f"fewest_boxes={config.fewest_boxes}: no class has as many training boxes; the most is {counts.max()}"
        )
    if not there[chosen].any():
        names = ", ".join(train.classes[k] for k in chosen)
        raise UserError(f"no test picture has an object of {names} that is not difficult")
    if config.context and len(train) < 2:
        raise UserError("context=True: one training picture has no neighbours; two at least are needed")
    return chosen


def detect(
    config: Detection, chosen: list[int], store: Store, train: Pictures, test: Pictures, workdir: Path
) -> list[Result]:
    """Trains on the training pictures and measures on the test pictures, for the classes `chosen`."""
    counts = counted(train)
    store.fill(train, "training")
    store.fill(test, "test")
    store.normalise(train, svm.NORM)
    learned = machines(store, train, chosen, config.regression)
    learned.write(workdir)
    corrected = _corrections(store, train, test, chosen) if config.context else np.zeros((len(test), len(chosen)))
    found: list[dict[str, Found]] = [{} for _ in chosen]
    for i in track(range(len(test)), len(test), "detections in test pictures"):
        regions, objects = store.read(test, i), test.listed[i]
        seen, boxes = regions.features[:-1][regions.proposed], regions.boxes[regions.proposed]
        for column, of in enumerate(learned(seen, boxes, objects.size)):
            found[column][objects.name] = Found(of.boxes, of.scores + corrected[i, column])
    results = []
    for k, of in zip(chosen, found, strict=True):
        truth = {o.name: Truth(o.boxes[o.labels == k], o.difficult[o.labels == k]) for o in test.listed}
        curve = precision_recall(truth, of)
        there = sum(int((~t.difficult).sum()) for t in truth.values())
        ap, area = (eleven_points(curve), under_curve(curve)) if there else (None, None)
        results.append(Result(train.classes[k], of, curve, ap, area, (int(counts[k]), there)))
        measured = "not measured" if ap is None else f"{100 * ap:.2f} %"
        say(f"{train.classes[k]}: average precision {measured}, {there} objects")
    return results


def machines(store: Store, train: Pictures, chosen: list[int], regression: bool) -> Machines:
    """What is learned of the classes `chosen`."""
    linear, moves = [], []
    for k in track(chosen, len(chosen), "classes"):
        positives, near, near_boxes, targets = _positives(store, train, k)
        linear.append(svm.train(positives, _negatives(store, train, k)))
        moves.append(svm.regress(near, near_boxes, targets) if regression else None)
    return Machines(tuple(train.classes[k] for k in chosen), store.scales, linear, moves)


def coverage(store: Store, pictures: Pictures) -> dict[str, float]:
    """How many proposals a picture has, and the share of its objects that one overlaps by 0.5, difficult ones left out."""
    counts, reached = [], []
    for i, objects in enumerate(pictures.listed):
        regions = store.read(pictures, i)
        proposed = regions.boxes[regions.proposed]
        counts.append(len(proposed))
        reached += (iou(objects.boxes[~objects.difficult], proposed).max(1, initial=0.0) >= 0.5).tolist()
    return {"a_picture": float(np.mean(counts)), "recall_pct": 100 * float(np.mean(reached))}


def _positives(store: Store, train: Pictures, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Features of the objects of a class; features and boxes of proposals near them, and the objects these are near to."""
    own, near, boxes, targets = [], [], [], []
    for i, objects in enumerate(train.listed):
        wanted = np.flatnonzero((objects.labels == k) & ~objects.difficult)
        if not len(wanted):
            continue
        regions = store.read(train, i)
        own.append(regions.features[wanted])
        share = iou(regions.boxes[regions.proposed], objects.boxes[wanted])
        close = np.flatnonzero(share.max(1) >= svm.REGRESSED_FROM)
        near.append(regions.features[:-1][regions.proposed][close])
        boxes.append(regions.boxes[regions.proposed][close])
        targets.append(objects.boxes[wanted][share[close].argmax(1)])
    return np.concatenate(own), np.concatenate(near), np.concatenate(boxes), np.concatenate(targets)


def _negatives(store: Store, train: Pictures, k: int) -> Iterator[np.ndarray]:
    """Features of the proposals of each picture that overlap no object of a class by 0.3, difficult ones counted."""
    for i, objects in enumerate(train.listed):
        regions = store.read(train, i)
        share = iou(regions.boxes[regions.proposed], objects.boxes[objects.labels == k])
        far = share.max(1, initial=0.0) < svm.NEGATIVE_BELOW
        yield regions.features[:-1][regions.proposed][far]


def _corrections(store: Store, train: Pictures, test: Pictures, chosen: list[int]) -> np.ndarray:
    """Of each test picture and class, see `context`."""
    labels = np.array([[(o.labels == k).any() for k in chosen] for o in train.listed])
    whole = [np.stack([store.read(p, i).features[-1] for i in range(len(p))]) for p in (train, test)]
    own, others = context.outputs(whole[0], labels, whole[1])
    return context.corrections(own, labels, others)
