"""Where the objects of images are: what `nin-jax predict --detect` prints.

Of a network, the boxes of its class maps for the classes that it is most certain of (they are trained on labels alone); of a
run of `nin_jax.detection.main`, the detections with the highest scores.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from nin_jax.cli import network as networks
from nin_jax.console import plain
from nin_jax.data.cache import cache_dir
from nin_jax.detection import detector, localise
from nin_jax.detection.detector import Detector
from nin_jax.devices.process import prepare_process
from nin_jax.errors import UserError
from nin_jax.storage import expanded
from nin_jax.training.predict import decoded

if TYPE_CHECKING:
    from nin_jax.training.predict import Classifier

MOST = 5  # objects of an image
LEAST = 0.1  # probability of a class whose map is shown beside that of the most probable one
LOOKS = 1.5, 2.0, 3.0  # of a picture, whose shorter side has so many times the pixels of the network's
ELONGATED = 100  # a longer side in shorter ones: maps are computed of pictures whose shorter side is as in LOOKS
COLOUR = (213, 94, 0)


class Object(NamedTuple):
    """An object: its class, the network's probability of it or the classifier's score, and its box.

    The box is (x0, y0, x1, y1) in pixels from the upper left corner; x1 and y1 are the first ones outside.
    """

    name: str
    score: float
    box: tuple[float, float, float, float]


def network(given: argparse.Namespace) -> Classifier | Detector:
    """The network, or the run of detection, that --model or --run names. Raises `UserError`."""
    folder = expanded(given.run or "").absolute()
    if given.run is None or given.model is not None or not (folder / detector.FILE).is_file():
        return networks.load(given)
    prepare_process(cache_dir() / "xla")
    return Detector(folder)


def of_maps(classifier: Classifier, image: np.ndarray) -> list[Object]:
    """The boxes of the class maps of an image uint8 `[H, W, 3]`, of any size. Raises `UserError`."""
    (found,) = classifier.classify(image)
    named = [found.top[0], *(guess for guess in found.top[1:] if guess.probability >= LEAST)]
    scales = [look * classifier.info.image_shape[0] / min(image.shape[:2]) for look in LOOKS]
    maps = localise.dense_maps(classifier, image, scales, classes=[guess.index for guess in named])
    return [
        Object(guess.name, guess.probability, _rounded(localise.box(maps[..., k]))) for k, guess in enumerate(named)
    ]


def of_detector(found_by: Detector, image: np.ndarray) -> list[Object]:
    """The detections with the highest scores in an image uint8 `[H, W, 3]`."""
    pairs = zip(found_by.machines.classes, found_by(image), strict=True)
    found = [
        Object(name, float(score), _rounded(box))
        for name, of in pairs
        for score, box in zip(of.scores, of.boxes, strict=True)
    ]
    return sorted(found, key=lambda of: -of.score)[:MOST]


def _rounded(box: np.ndarray) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (round(float(v), 1) for v in box)
    return x0, y0, x1, y1


def drawn(image: np.ndarray, objects: Sequence[Object]) -> Image.Image:
    """An image with the boxes and names of its objects."""
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    for name, score, box in objects:
        draw.rectangle(box, outline=COLOUR, width=max(1, min(picture.size) // 150))
        draw.text((box[0] + 3, box[1] + 2), f"{name} {score:.2f}", fill=COLOUR)
    return picture


def run(images: Sequence[str], seer: Classifier | Detector, maps: str | None, as_json: bool) -> None:
    """Prints a line for each image, and writes those with boxes, IMAGE-objects.png, into the folder `maps`.

    Args:
      images: their files.
      seer: the network or the detector.
    """
    folder, files = expanded(maps) if maps else None, []
    for name in images:
        image = decoded(name, (1, 1, 3), make=lambda pixels: pixels)  # all of it, at its own size
        height, width = image.shape[:2]
        if not isinstance(seer, Detector) and max(height, width) > ELONGATED * min(height, width):
            raise UserError(f"{name}: {width} x {height} pixels are a strip, which enlarged would fill the memory")
        found = of_detector(seer, image) if isinstance(seer, Detector) else of_maps(seer, image)
        line: dict[str, Any] = {"image": name, "objects": [of._asdict() for of in found]}
        if folder:
            files.append(networks.save_picture(drawn(image, found), folder, f"{Path(name).stem}-objects", files))
            line["map"] = str(files[-1])
        if as_json:
            print(json.dumps(line))
        else:
            words = ", ".join(f"{of.name} {of.score:.2f} at {' '.join(f'{v:g}' for v in of.box)}" for of in found)
            print(plain(f"{name}: {words or 'nothing'}"))
