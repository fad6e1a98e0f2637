"""The pictures of a detection experiment: composed scenes, or a user's own pictures with boxes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nin_jax import registry
from nin_jax.data import splits
from nin_jax.data.objects import annotations, tfds_voc
from nin_jax.data.objects.scenes import Scene, scene
from nin_jax.data.pictures import FOLDER_FORMATS, WHITE, Unreadable, open_picture, reason, upright
from nin_jax.detection.config import Detection
from nin_jax.errors import UserError
from nin_jax.storage import expanded


class Objects(NamedTuple):
    """A picture's name, its width and height, and its objects: boxes `[N, 4]`, labels int32 `[N]`, difficult bool `[N]`."""

    name: str
    size: tuple[int, int]
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray


class Pictures:
    """A split, whose pictures are read one at a time.

    Args:
      listed: the objects of each picture.
      files: of each picture; none for scenes, which are made.

    Attributes:
      classes: names, by label.
    """

    def __init__(self, classes: Sequence[str], listed: Sequence[Objects], files: Sequence[Path]):
        self.classes, self.listed, self.files = tuple(classes), list(listed), list(files)

    def __len__(self) -> int:
        return len(self.listed)

    def stamp(self, number: int) -> str:
        """What changes when a picture's file does: its size and time; nothing for scenes."""
        status = self.files[number].stat() if self.files else None
        return f"{status.st_size} {status.st_mtime_ns}" if status else ""

    def image(self, number: int) -> np.ndarray:
        """uint8 `[H, W, 3]`, upright, on white where it is transparent. Raises `UserError` for one that cannot be read."""
        file = self.files[number]
        try:
            image = np.asarray(upright(open_picture(file, FOLDER_FORMATS), 3, WHITE))
        except (Unreadable, OSError) as error:
            raise UserError(f"{file}: {reason(error)}") from error
        width, height = self.listed[number].size
        if image.shape[:2] != (height, width):
            raise UserError(
                f"{file}: {image.shape[1]} x {image.shape[0]} pixels, but its boxes are for {width} x {height}"
            )
        return image


class Scenes(Pictures):
    """Composed scenes, made anew whenever they are asked for."""

    def __init__(self, config: Detection, split: str, count: int):
        c = config.scenes
        dataset = registry.call("datasets", c.dataset)
        info = splits.facts(dataset, c.data_dir)
        if info.streamed or info.multilabel:
            raise UserError(
                f"scenes.dataset={c.dataset}: must be a data set that fits in memory, with one label an image"
            )
        largest = round(info.image_shape[0] * max(c.smallest, c.largest))
        if largest > c.side:
            raise UserError(f"scenes.side={c.side}: objects of {c.dataset} have up to {largest} pixels a side")
        self.images, self.labels = _images(c.dataset, split, c.data_dir)
        self.config = config
        made = [self._scene(i) for i in range(count)]
        listed = [
            Objects(f"{split}{i:05}", (c.side, c.side), s.boxes, s.labels, np.zeros(len(s.boxes), bool))
            for i, s in enumerate(made)
        ]
        super().__init__(info.names, listed, ())

    def _scene(self, number: int) -> Scene:
        c = self.config.scenes
        return scene(
            self.images,
            self.labels,
            number,
            seed=self.config.seed,
            side=c.side,
            objects=(1, c.most_objects),
            scale=(c.smallest, c.largest),
        )

    def image(self, number: int) -> np.ndarray:
        made = self._scene(number).image
        return np.repeat(made, 3, axis=-1) if made.shape[-1] == 1 else made


@functools.lru_cache(maxsize=2)
def _images(name: str, split: str, data_dir: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of a data set, kept for the next experiment of a process: decoding them takes long."""
    dataset = registry.call("datasets", name)
    loaded = dataset.entry.load(split, data_dir, **dataset.arguments)
    images, _ = splits.usable(loaded, splits.facts(dataset, data_dir), f"split {split!r} of {dataset}", "stop")
    return images


def read(config: Detection) -> tuple[Pictures, Pictures]:
    """The training and the test pictures of an experiment. Raises `UserError`."""
    if config.data == "scenes":
        return Scenes(config, "train", config.scenes.train), Scenes(config, "test", config.scenes.test)
    root = expanded(str(config.path))
    if config.data == "voc":
        root = tfds_voc.devkit(root)
        classes: Sequence[str] = config.classes or annotations.VOC_CLASSES
        listed = bool(annotations.lists(root))
        names = (config.train_split, config.test_split) if listed else ("all",)
        parts = [annotations.voc(root, split, classes) for split in names]
    else:
        folder = expanded(str(config.pictures))
        everything, classes = annotations.coco(root, folder)
        parts = [everything]
        if config.test_path:
            folder = expanded(config.test_pictures) if config.test_pictures else folder
            found, others = annotations.coco(expanded(config.test_path), folder)
            if others != classes:
                raise UserError(f"test_path={config.test_path}: its categories are {others}, those of path {classes}")
            parts.append(found)
    if len(parts) == 1:
        parts = [parts[0][::2], parts[0][1::2]]
    if shared := {a.name for a in parts[0]} & {a.name for a in parts[1]}:
        raise UserError(f"{len(shared)} pictures are in both splits, such as {min(shared)}")
    train, test = (
        Pictures(
            classes,
            [Objects(a.name, a.size, a.boxes, a.labels, a.difficult) for a in part],
            [a.picture for a in part],
        )
        for part in parts
    )
    return train, test
