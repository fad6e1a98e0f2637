"""R-CNN (Girshick et al. 2014) as the slides of 2014 use it: proposals, features, a linear classifier a class, its measure.

The features of each picture are kept on disk, each file whole, keyed by what made them. A second start computes only what
is missing, and ends with the same numbers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from nin_jax import storage
from nin_jax.console import say, track
from nin_jax.data.objects import proposals
from nin_jax.data.objects.boxes import clip, iou
from nin_jax.detection import context, features, svm
from nin_jax.detection.config import BASELINES, Detection
from nin_jax.detection.pictures import Pictures
from nin_jax.errors import UserError
from nin_jax.training.average_precision import Found, Truth, eleven_points, precision_recall, under_curve
from nin_jax.weights import zoo


def sources(config: Detection) -> list[features.Source]:
    """What the features of the experiment are taken from. Raises `UserError`."""
    found = []
    for i, name in enumerate(config.networks):
        if name in BASELINES:
            found.append(features.hog() if name == "hog" else features.colour(8))
        else:
            wanted = config.maps[min(i, len(config.maps) - 1)]
            found.append(features.network(zoo.load(name), wanted, config.grid))
    return found


def proposer(config: Detection) -> Callable[[np.ndarray, str], np.ndarray]:
    """Proposals of a picture, from its image and name."""
    c = config.proposals
    if c.source == "windows":

        def windows(image: np.ndarray, name: str) -> np.ndarray:
            del name
            height, width = image.shape[:2]
            return proposals.sliding_windows(width, height, smallest=c.smallest, scales=c.scales, stride=c.stride)

        return windows
    if c.source == "selective_search":
        return lambda image, name: proposals.selective_search(image, c.most)
    given = proposals.from_file(Path(c.source).expanduser())

    def from_file(image: np.ndarray, name: str) -> np.ndarray:
        if name not in given:
            raise UserError(f"proposals.source={c.source}: has no boxes of {name}")
        return clip(given[name], image.shape[1], image.shape[0])

    return from_file


class Regions(NamedTuple):
    """A picture's regions: boxes `[N, 4]`, its objects first, then proposals; features `[N + 1, D]`, the whole picture last."""

    boxes: np.ndarray
    features: np.ndarray
    objects: int

    @property
    def proposed(self) -> slice:
        return slice(self.objects, len(self.boxes))


class Store:
    """The regions of pictures, on disk.

    Args:
      folder: where.
      config: of the experiment.

    Attributes:
      seconds: spent on each picture that was computed.
    """

    def __init__(self, folder: Path, config: Detection):
        self.folder, self.config, self.seconds = folder, config, []
        made_by = json.dumps(
            [config.networks, config.maps, config.grid, vars(config.proposals), _version(config)], default=str
        )
        self.key = hashlib.sha256(made_by.encode()).hexdigest()[:16]
        self.extract: features.Extractor | None = None
        self.propose = proposer(config)

    def fill(self, pictures: Pictures, what: str) -> None:
        """Computes what is missing."""
        missing = [i for i in range(len(pictures)) if self._read(pictures, i) is None]
        for i in track(missing, len(missing), f"features of {what} pictures"):
            begin, image, objects = time.perf_counter(), pictures.image(i), pictures.listed[i]
            proposed = self.propose(image, objects.name)
            boxes = np.concatenate([objects.boxes, proposed])
            if self.extract is None:
                self.extract = features.Extractor(sources(self.config))
            whole = np.array([[0.0, 0, image.shape[1], image.shape[0]]])
            found = self.extract(image, np.concatenate([boxes, whole]))
            self.seconds.append(time.perf_counter() - begin)
            path = self._path(pictures, i)
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch = path.with_suffix(".part.npz")
            np.savez(scratch, boxes=boxes, features=found.astype(np.float16), objects=len(objects.boxes))
            storage.persist(str(path), lambda a=scratch, b=path: a.replace(b))

    def read(self, pictures: Pictures, number: int) -> Regions:
        """The regions of a picture, which `fill` has computed."""
        found = self._read(pictures, number)
        if found is None:
            raise UserError(f"{self._path(pictures, number)} is gone or broken; start again")
        return found

    def _read(self, pictures: Pictures, number: int) -> Regions | None:
        broken = OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError
        with contextlib.suppress(*broken), open(self._path(pictures, number), "rb") as file:
            with np.load(file, allow_pickle=False) as arrays:
                found = Regions(arrays["boxes"], arrays["features"].astype(np.float32), int(arrays["objects"]))
            return found if np.array_equal(found.boxes[: found.objects], pictures.listed[number].boxes) else None
        return None

    def _path(self, pictures: Pictures, number: int) -> Path:
        key = hashlib.sha256(f"{self.key} {pictures.stamp(number)}".encode()).hexdigest()[:8]
        return self.folder / self.key / f"{pictures.listed[number].name}-{key}.npz"


def _version(config: Detection) -> list[Any]:
    """What tells the networks of two starts apart, and the pictures of two seeds."""
    found: list[Any] = (
        [config.data, config.seed, vars(config.scenes)] if config.data == "scenes" else [config.data, config.path]
    )
    for name in config.networks:
        if name not in BASELINES:
            network, digest = zoo.load(name), hashlib.sha256()
            for leaf in jax.tree.leaves((network.variables, network.stats)):
                digest.update(np.asarray(leaf).tobytes())
            found.append([digest.hexdigest(), [str(op) for op in network.config.preprocess]])
    if (file := Path(config.proposals.source).expanduser()).is_file():  # another file of the same name has other boxes
        found.append(hashlib.sha256(file.read_bytes()).hexdigest())
    return found


class Result(NamedTuple):
    """Detections of a class in the test pictures, and their measures.

    Attributes:
      name: of the class.
      found: by picture.
      ap, area: average precision of 2007 and of 2010, 0 to 1; None without an object in the test pictures.
      objects: in the training and in the test pictures, those that are not difficult.
    """

    name: str
    found: dict[str, Found]
    ap: float | None
    area: float | None
    objects: tuple[int, int]


def detect(config: Detection, train: Pictures, test: Pictures, workdir: Path) -> tuple[list[Result], Store]:
    """Trains on the training pictures and measures on the test pictures. Raises `UserError`."""
    counts = np.bincount(np.concatenate([o.labels[~o.difficult] for o in train.listed]), minlength=len(train.classes))
    chosen = [k for k in range(len(train.classes)) if counts[k] >= config.fewest_boxes]
    if not chosen:
        raise UserError(
            f"fewest_boxes={config.fewest_boxes}: no class has as many training boxes; the most is {counts.max()}"
        )
    store = Store(workdir / "features", config)
    store.fill(train, "training")
    store.fill(test, "test")
    lengths = [np.linalg.norm(store.read(train, i).features, axis=1).mean() for i in range(min(50, len(train)))]
    scale = np.float32(svm.NORM / np.mean(lengths))
    corrected = _corrections(store, train, test, chosen) if config.context else np.zeros((len(test), len(chosen)))
    results = []
    for column, k in enumerate(track(chosen, len(chosen), "classes")):
        positives, near, near_boxes, targets = _positives(store, train, k, scale)
        machine = svm.train(positives, _negatives(store, train, k, scale))
        regression = svm.regress(near, near_boxes, targets) if config.regression else None
        found = {}
        for i in range(len(test)):
            regions, objects = store.read(test, i), test.listed[i]
            seen, boxes = regions.features[:-1][regions.proposed] * scale, regions.boxes[regions.proposed]
            kept, scores = svm.suppressed(machine, seen, boxes)
            boxes = boxes[kept] if regression is None else clip(regression(seen[kept], boxes[kept]), *objects.size)
            found[objects.name] = Found(boxes, scores + corrected[i, column])
        truth = {o.name: Truth(o.boxes[o.labels == k], o.difficult[o.labels == k]) for o in test.listed}
        curve = precision_recall(truth, found)
        there = sum(int((~t.difficult).sum()) for t in truth.values())
        ap, area = (eleven_points(curve), under_curve(curve)) if there else (None, None)
        results.append(Result(train.classes[k], found, ap, area, (int(counts[k]), there)))
        measured = "not measured" if ap is None else f"{100 * ap:.2f} %"
        say(f"{train.classes[k]}: average precision {measured}, {there} objects")
    return results, store


def _positives(
    store: Store, train: Pictures, k: int, scale: np.float32
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Features of the objects of a class; features and boxes of proposals near them, and the objects these are near to."""
    own, near, boxes, targets = [], [], [], []
    for i, objects in enumerate(train.listed):
        wanted = np.flatnonzero((objects.labels == k) & ~objects.difficult)
        if not len(wanted):
            continue
        regions = store.read(train, i)
        own.append(regions.features[wanted] * scale)
        share = iou(regions.boxes[regions.proposed], objects.boxes[wanted])
        close = np.flatnonzero(share.max(1) >= svm.REGRESSED_FROM)
        near.append(regions.features[:-1][regions.proposed][close] * scale)
        boxes.append(regions.boxes[regions.proposed][close])
        targets.append(objects.boxes[wanted][share[close].argmax(1)])
    return np.concatenate(own), np.concatenate(near), np.concatenate(boxes), np.concatenate(targets)


def _negatives(store: Store, train: Pictures, k: int, scale: np.float32) -> Iterator[np.ndarray]:
    """Features of the proposals of each picture that overlap no object of a class by 0.3, difficult ones counted."""
    for i, objects in enumerate(train.listed):
        regions = store.read(train, i)
        share = iou(regions.boxes[regions.proposed], objects.boxes[objects.labels == k])
        far = share.max(1, initial=0.0) < svm.NEGATIVE_BELOW
        yield regions.features[:-1][regions.proposed][far] * scale


def _corrections(store: Store, train: Pictures, test: Pictures, chosen: list[int]) -> np.ndarray:
    """Of each test picture and class, see `context`."""
    labels = np.array([[(o.labels == k).any() for k in chosen] for o in train.listed])
    whole = [np.stack([store.read(p, i).features[-1] for i in range(len(p))]) for p in (train, test)]
    own, others = context.outputs(whole[0], labels, whole[1])
    return context.corrections(own, labels, others)
