"""Proposals and features of pictures, kept on disk: each file whole, keyed by what made it.

A second start computes only what is missing. Proposals are made once for all networks, and each network has its own files,
so that an experiment with three networks takes those of an experiment with one of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from nin_jax import storage
from nin_jax.console import track
from nin_jax.data.objects import proposals
from nin_jax.data.objects.boxes import clip
from nin_jax.detection import features
from nin_jax.detection.config import BASELINES, Detection
from nin_jax.detection.pictures import Pictures
from nin_jax.errors import UserError
from nin_jax.storage import expanded
from nin_jax.training.predict import Predictor
from nin_jax.weights import zoo

BROKEN = OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError  # what a file that is missing or cut short raises


class Regions(NamedTuple):
    """A picture's regions: boxes `[N, 4]`, its objects first, then proposals; features `[N + 1, D]`, the whole picture last.

    Features of several networks are behind one another, each scaled by `Store.scales`.
    """

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
      scales: what the features of each network are multiplied by; 1 until they are set.
      seconds: spent on the features of each picture that was filled, whether in this start or before, and on its proposals.
    """

    def __init__(self, folder: Path, config: Detection):
        self.folder, self.seconds = folder, []
        self.propose = proposer(config)
        self.boxes = folder / f"boxes-{_key(_origin(config))}"
        made = extractors(config)
        self.extractors = [extractor for _, extractor in made]
        self.parts = [folder / name for name, _ in made]
        self.scales = np.ones(len(self.parts), np.float32)

    def fill(self, pictures: Pictures, what: str) -> None:
        """Computes what is missing."""
        for i in track(range(len(pictures)), len(pictures), f"features of {what} pictures"):
            objects, image = pictures.listed[i], None
            kept = self._kept(self.boxes, pictures, i)
            if kept is None:
                begin, image = time.perf_counter(), pictures.image(i)
                kept = {"boxes": self.propose(image, objects.name), "seconds": time.perf_counter() - begin}
                self._keep(self.boxes, pictures, i, kept)
            spent, boxes = float(kept["seconds"]), np.concatenate([objects.boxes, kept["boxes"]])
            for extract, folder in zip(self.extractors, self.parts, strict=True):
                part = self._part(folder, pictures, i)
                if part is None:
                    begin, image = time.perf_counter(), pictures.image(i) if image is None else image
                    whole = np.array([[0.0, 0, image.shape[1], image.shape[0]]])
                    found = extract(image, np.concatenate([boxes, whole])).astype(np.float16)
                    part = {"boxes": boxes, "features": found, "seconds": time.perf_counter() - begin}
                    self._keep(folder, pictures, i, part)
                spent += float(part["seconds"])
            self.seconds.append(spent)

    def read(self, pictures: Pictures, number: int) -> Regions:
        """The regions of a picture, which `fill` has computed."""
        columns, boxes = [], np.zeros((0, 4))
        for folder, scale in zip(self.parts, self.scales, strict=True):
            part = self._part(folder, pictures, number)
            if part is None:
                raise UserError(f"{self._path(folder, pictures, number)} is gone or broken; start again")
            columns.append(part["features"].astype(np.float32) * scale)
            boxes = part["boxes"]
        return Regions(boxes, np.concatenate(columns, axis=1), len(pictures.listed[number].boxes))

    def normalise(self, pictures: Pictures, length: float, most: int = 50) -> None:
        """Sets `scales`: features get a mean length of `length`, to which each network gives the same share."""
        self.scales = np.ones(len(self.parts), np.float32)
        lengths = []
        for folder in self.parts:
            parts = [self._part(folder, pictures, i) for i in range(min(most, len(pictures)))]
            of = [np.linalg.norm(p["features"].astype(np.float32), axis=1).mean() for p in parts if p is not None]
            lengths.append(np.mean(of))
        self.scales = (length / np.sqrt(len(lengths)) / np.array(lengths)).astype(np.float32)

    def _part(self, folder: Path, pictures: Pictures, number: int) -> dict[str, Any] | None:
        """Features and boxes of a picture, unless they are missing, broken or of other objects."""
        found, objects = self._kept(folder, pictures, number), pictures.listed[number].boxes
        same = found is not None and np.array_equal(found["boxes"][: len(objects)], objects)
        return found if same and found is not None and len(found["features"]) == len(found["boxes"]) + 1 else None

    def _kept(self, folder: Path, pictures: Pictures, number: int) -> dict[str, Any] | None:
        wanted = ("boxes", "seconds") if folder == self.boxes else ("boxes", "seconds", "features")
        path = self._path(folder, pictures, number)
        # Opened here, as NumPy leaves a broken file open.
        with contextlib.suppress(*BROKEN), open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in wanted}
        return None

    def _keep(self, folder: Path, pictures: Pictures, number: int, arrays: Mapping[str, Any]) -> None:
        path, content = self._path(folder, pictures, number), io.BytesIO()
        np.savez(content, **arrays)
        storage.make_folder(path.parent)
        storage.write_whole(path, content.getvalue())  # experiments that share the folder may write it at the same time

    def _path(self, folder: Path, pictures: Pictures, number: int) -> Path:
        return folder / f"{pictures.listed[number].name}-{_key(pictures.stamp(number))[:8]}.npz"


def _key(made_by: Any) -> str:
    return hashlib.sha256(json.dumps(made_by, default=str).encode()).hexdigest()[:16]


def extractors(config: Detection) -> list[tuple[str, features.Extractor]]:
    """For each network of an experiment, the name of the folder of its features, and what computes them."""
    made = []
    for i, name in enumerate(config.networks):
        source, version = _source(name, config.maps[min(i, len(config.maps) - 1)], config)
        extractor = features.Extractor(source, config.finest if source.maps else 0.0)
        made.append((f"{Path(name).name}-{_key([_origin(config), version])}", extractor))
    return made


def _source(name: str, wanted: str, config: Detection) -> tuple[features.Source, Any]:
    """What features are taken from, and what tells it from others. Raises `UserError`."""
    if name in BASELINES:
        return (features.hog() if name == "hog" else features.colour(8)), name
    network = zoo.load(name)
    source = features.network(network, wanted, config.grid)
    if config.finest and not source.maps:
        raise UserError(f"finest={config.finest:g}: {name} prepares images of one size, so its regions must be warped")
    return source, [wanted, config.grid, config.finest, *fingerprint(network)]


def fingerprint(network: Predictor) -> list[Any]:
    """What tells the networks of two starts apart: their weights, and how they prepare images."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves((network.variables, network.stats)):
        digest.update(np.asarray(leaf).tobytes())
    return [digest.hexdigest(), [str(op) for op in network.config.preprocess]]


def _origin(config: Detection) -> list[Any]:
    """What tells the boxes of two experiments apart: where their pictures are from, and how proposals are made."""
    found: list[Any] = [config.data, config.path, vars(config.proposals)]
    if config.data == "scenes":
        made_of = {k: v for k, v in vars(config.scenes).items() if k not in ("train", "test")}
        found = [config.data, config.seed, made_of, vars(config.proposals)]
    if (file := expanded(config.proposals.source)).is_file():  # another file of the same name has other boxes
        found.append(hashlib.sha256(file.read_bytes()).hexdigest())
    return found


def proposer(config: Detection) -> Callable[[np.ndarray, str], np.ndarray]:
    """Proposals of a picture, from its image and name. Raises `UserError`."""
    c = config.proposals
    if c.source == "windows":

        def windows(image: np.ndarray, name: str) -> np.ndarray:
            del name
            height, width = image.shape[:2]
            return proposals.sliding_windows(width, height, smallest=c.smallest, scales=c.scales, stride=c.stride)

        return windows
    if c.source == "selective_search":
        return lambda image, name: proposals.selective_search(image, c.most)
    given = proposals.from_file(expanded(c.source))

    def from_file(image: np.ndarray, name: str) -> np.ndarray:
        if name not in given:
            raise UserError(f"proposals.source={c.source}: has no boxes of {name}")
        return clip(given[name], image.shape[1], image.shape[0])

    return from_file
