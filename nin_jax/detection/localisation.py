"""Localisation by class maps, measured against boxes that know nothing of the picture."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from nin_jax import storage
from nin_jax.console import say, track
from nin_jax.data.objects.boxes import iou
from nin_jax.detection import localise
from nin_jax.detection.config import Detection
from nin_jax.detection.pictures import Objects, Pictures
from nin_jax.detection.store import fingerprint
from nin_jax.errors import UserError, nearest
from nin_jax.weights import zoo

THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)  # of a map, of which the best on the training pictures is taken
SIDES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of the centre box, likewise, in sides of the picture
RANDOM = 20  # random boxes for each that is asked for


def measure(config: Detection, train: Pictures, test: Pictures, kept: Path) -> dict[str, Any] | None:
    """How often the box of a class that is in a picture is right (IoU of 0.5 or more with one of its objects).

    Asked is for each class in each picture, unless all its objects there are difficult, and for classes that the network
    knows. The threshold of maps and the side of the centre box are those that are best on the training pictures.

    Args:
      config: of the experiment.
      train, test: its pictures.
      kept: where the answer is written, and taken from in a second start if what made it is the same.

    Returns:
      "maps_pct", "centre_pct", "random_pct": the share of right boxes; "pointing_pct", "centre_pointing_pct": of points in an
      object, the strongest evidence and the picture's centre; "asked", "threshold", "side", "network". None, after a line, where nothing can
      be asked and features are measured too.

    Raises `UserError`.
    """

    def nothing(why: str) -> None:
        if not config.networks:
            raise UserError(f"localise={config.localise}: {why}")
        say(f"localise={config.localise}: {why}; boxes of class maps are not measured")

    network = zoo.load(str(config.localise))
    theirs = {**{name: name for name in train.classes}, **dict(config.names)}
    for mine, other in config.names:
        if mine not in train.classes:  # an experiment's names are for its own classes, and the pictures may be others
            say(f"names={mine}={other}: the pictures have no such class; {nearest(mine, train.classes)}")
        if other not in network.class_names:
            raise UserError(f"names={mine}={other}: {nearest(other, network.class_names)}")
    known = [k for k, name in enumerate(train.classes) if theirs[name] in network.class_names]
    if not known:
        return nothing(f"it knows none of {', '.join(train.classes)}; say which are the same by names")

    def asked(pictures: Pictures, what: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        rights, centres, points, middles, chance = [], [], [], [], []
        random = np.random.default_rng(config.seed)
        for i in track(range(len(pictures)), len(pictures), f"class maps of {what} pictures"):
            objects = pictures.listed[i]
            wanted = [k for k in known if ((objects.labels == k) & ~objects.difficult).any()]
            if not wanted:
                continue
            indices = [network.class_names.index(theirs[train.classes[k]]) for k in wanted]
            maps = localise.dense_maps(network, pictures.image(i), config.enlarge, config.flip, indices)
            for layer, k in enumerate(wanted):
                boxes = objects.boxes[(objects.labels == k) & ~objects.difficult]
                evidence = maps[..., layer]
                rights.append([_right(localise.box(evidence, t), boxes) for t in THRESHOLDS])
                centres.append([_right(_centre(objects, side), boxes) for side in SIDES])
                points.append(localise.hits(localise.point(evidence), boxes))
                middles.append(localise.hits((objects.size[0] / 2, objects.size[1] / 2), boxes))
                chance.append(np.mean([_right(_random(objects, random), boxes) for _ in range(RANDOM)]))
        return np.array(rights), np.array(centres), np.array(points), np.array(middles), np.array(chance)

    objects = [[p.stamp(i), *map(str, o)] for p in (train, test) for i, o in enumerate(p.listed)]
    made_by = [config.localise, fingerprint(network), config.names, config.enlarge, config.flip, config.seed, objects]
    key = hashlib.sha256(json.dumps(made_by).encode()).hexdigest()
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        before = json.loads(kept.read_text())
        if before["key"] == key:
            return before["result"]
    on_train = asked(train, "training")
    if not len(on_train[0]):
        return nothing("no training picture has a class that it knows")
    best, side = int(on_train[0].mean(0).argmax()), int(on_train[1].mean(0).argmax())
    rights, centres, points, middles, chance = asked(test, "test")
    if not len(rights):
        return nothing("no test picture has a class that it knows")
    result = {
        "network": config.localise,
        "asked": len(rights),
        "threshold": THRESHOLDS[best],
        "side": SIDES[side],
        "maps_pct": 100 * float(rights[:, best].mean()),
        "centre_pct": 100 * float(centres[:, side].mean()),
        "random_pct": 100 * float(chance.mean()),
        "pointing_pct": 100 * float(points.mean()),
        "centre_pointing_pct": 100 * float(middles.mean()),
    }
    storage.write_json(kept, {"key": key, "result": result})
    say(
        f"boxes of class maps: {result['maps_pct']:.1f} % right of {len(rights)}; centre box {result['centre_pct']:.1f} %, "
        f"random boxes {result['random_pct']:.1f} %; pointing {result['pointing_pct']:.1f} %, at the centre {result['centre_pointing_pct']:.1f} %"
    )
    return result


def _right(box: np.ndarray, objects: np.ndarray) -> bool:
    return bool(iou(box[None], objects).max() >= 0.5)


def _centre(objects: Objects, side: float) -> np.ndarray:
    size = np.array(objects.size, np.float64)
    return np.concatenate([size * (1 - side) / 2, size * (1 + side) / 2])


def _random(objects: Objects, random: np.random.Generator) -> np.ndarray:
    corners = np.sort(random.uniform(0, 1, (2, 2)), axis=0) * np.array(objects.size)
    return corners.ravel()
