"""The config of a detection experiment: every key once, with its default, its text and its check."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from ml_collections import ConfigDict

from nin_jax import schema, storage
from nin_jax.errors import UserError
from nin_jax.schema import at_least, key, must, one_of

BASELINES = ("hog", "colour")  # features without a network


def _share(least: float = 0.0) -> Any:
    return must(f"from {least:g} to 1", lambda x: least <= x <= 1)


def _pairs(values: tuple[Any, ...]) -> tuple[tuple[str, str], ...]:
    """ "A=B" as (A, B)."""
    if not all(isinstance(v, str) and v.count("=") == 1 for v in values):
        raise ValueError('must be texts such as "aeroplane=airplane"')
    return tuple((v.split("=")[0], v.split("=")[1]) for v in values)


def _texts(values: tuple[Any, ...]) -> tuple[str, ...]:
    if not all(isinstance(v, str) and v for v in values):
        raise ValueError("must be texts")
    return values


def _scales(values: tuple[Any, ...]) -> tuple[float, ...]:
    if not values or not all(type(v) in (int, float) and 0 < v < math.inf for v in values):
        raise ValueError("must be numbers above 0, one at least")
    return values


@dataclasses.dataclass(frozen=True)
class Scenes:
    """Composed scenes, see `data.objects.scenes`."""

    dataset: str = key("cifar10", "classification data set whose images are the objects")
    data_dir: str | None = key(None, "where it is prepared; None: TFDS_DATA_DIR, else ~/tensorflow_datasets")
    train: int = key(200, "training scenes, of images of its training split", at_least(2))
    test: int = key(200, "test scenes, of images of its test split", at_least(1))
    side: int = key(96, "height and width of a scene, in pixels", at_least(8))
    most_objects: int = key(3, "most objects of a scene; the fewest is 1", at_least(1))
    smallest: float = key(0.75, "smallest size of an object, in sizes of an image", must("above 0", lambda x: x > 0))
    largest: float = key(1.5, "largest size of an object, in sizes of an image", must("above 0", lambda x: x > 0))


@dataclasses.dataclass(frozen=True)
class Proposals:
    """Boxes in which an object might be, see `data.objects.proposals`."""

    source: str = key("windows", '"windows", "selective_search", or the name of a JSON file of boxes')
    smallest: float = key(0.25, "smallest window, as a share of the picture's shorter side", _share(0.02))
    scales: int = key(5, "sizes of windows", at_least(1))
    stride: float = key(0.35, "from a window to the next, in windows", _share(0.05))
    most: int = key(2000, "most boxes of selective search in a picture", at_least(1))


@dataclasses.dataclass(frozen=True)
class Detection:
    """A checked config of a detection experiment."""

    seed: int = key(0, "seed of the scenes and of the random boxes", at_least(0))
    data: str = key("scenes", 'where pictures come from: "scenes", "voc" or "coco"', one_of("scenes", "voc", "coco"))
    path: str | None = key(
        None, "voc: the folder with Annotations and JPEGImages; coco: the JSON file", storage.local_path
    )
    pictures: str | None = key(None, "coco: the folder of the pictures", storage.local_path)
    test_path: str | None = key(
        None, "coco: the JSON file of the test pictures; None: every second picture of `path`", storage.local_path
    )
    test_pictures: str | None = key(None, "coco: the folder of those; None: that of `pictures`", storage.local_path)
    train_split: str = key("trainval", "voc: the list of training pictures, ImageSets/Main/NAME.txt")
    test_split: str = key(
        "test", "voc: the list of test pictures; for coco, and in a folder without lists, every second picture is one"
    )
    classes: tuple[str, ...] = key((), "voc: names of a folder's own classes; (): VOC's twenty", _texts)
    fewest_boxes: int = key(20, "classes with fewer training boxes are left out", at_least(1))
    scenes: Scenes = key(Scenes)
    networks: tuple[str, ...] = key(
        ("nin.cifar10",),
        'trained networks whose features are concatenated: names, run directories, or the baselines "hog" and "colour"',
        _texts,
    )
    maps: tuple[str, ...] = key(
        ("cccp5",), "the feature map that is taken of each network; the last is used for the rest", _texts
    )
    grid: int = key(2, "cells, in height and width, over which a map is averaged", at_least(1))
    finest: float = key(
        0.0,
        "largest scale of a picture whose maps are averaged over regions; 0: each region is warped to an image instead",
        at_least(0),
    )
    proposals: Proposals = key(Proposals)
    features: str | None = key(
        None,
        "folder where features are kept, which experiments may share; None: in the run directory",
        storage.local_path,
    )
    regression: bool = key(True, "whether boxes are corrected by regression")
    context: bool = key(False, "whether scores are corrected by the whole picture, see `detection.context`")
    localise: str | None = key(None, "network whose class maps say where things are; None: no localisation")
    names: tuple[tuple[str, str], ...] = key(
        (), 'names of classes in its vocabulary where they differ: "aeroplane=airplane"', _pairs
    )
    flip: bool = key(True, "whether class maps are averaged with those of the mirror image")
    enlarge: tuple[float, ...] = key((1.0,), "scales of a picture at which class maps are computed", _scales)

    def __post_init__(self) -> None:
        if self.data != "scenes" and not self.path:
            raise UserError(f"path: data={self.data!r} needs it")
        if self.data == "coco" and not self.pictures:
            raise UserError("pictures: data='coco' needs the folder of the pictures")
        for name, data in {"pictures": "coco", "test_path": "coco", "test_pictures": "coco", "classes": "voc"}.items():
            if getattr(self, name) and self.data != data:
                raise UserError(f"{name}: is for data={data!r} alone, and data is {self.data!r}")
        if self.test_pictures and not self.test_path:
            raise UserError("test_pictures: needs test_path, the JSON file of the test pictures")
        if not self.maps:
            raise UserError("maps=(): name one at least")
        if not self.networks and not self.localise:
            raise UserError("networks=(): name one at least, or one of localise")


def default() -> ConfigDict:
    """The plain defaults, which an experiment changes."""
    return schema.default(Detection)


def check(config: Any) -> Detection:
    """The typed config. Raises `UserError` in one line."""
    return schema.check(Detection, config)


def read(plain: Any) -> Detection:
    """The typed config of what a run has kept in its config.json. Raises `UserError`, `ValueError` for what is no config."""

    def back(value: Any) -> Any:
        return tuple(map(back, value)) if isinstance(value, list) else value

    if not isinstance(plain, dict):
        raise ValueError("config.json holds no object")
    config = default()
    flat = ConfigDict({name: back(value) for name, value in plain.items()})
    config.update(flat)
    return check(config)
