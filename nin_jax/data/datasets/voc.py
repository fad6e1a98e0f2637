"""PASCAL VOC 2007 and 2012 (Everingham et al. 2010), several labels for a picture, from a folder laid out as its devkit's:

    PATH/Annotations/NAME.xml, PATH/JPEGImages/NAME.jpg, PATH/ImageSets/Main/SPLIT.txt      --config.data_dir=PATH

such as VOCdevkit/VOC2007, or from what TFDS has prepared of it, ROOT/voc/2007/5.0.0 (file_format="array_record"). Splits are the
devkit's own lists: train, val, trainval, test. An image is the whole picture, or, for HCP, a bag of hypotheses; see
`data.objects.hypotheses`.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from nin_jax.data.cache import cached
from nin_jax.data.objects import annotations, hypotheses, tfds_voc
from nin_jax.data.objects.annotations import VOC_CLASSES, Annotated
from nin_jax.data.pictures import FOLDER_FORMATS, WHITE, Unreadable, open_picture, upright
from nin_jax.data.splits import UNREADABLE, Info, Split, bad_record, take
from nin_jax.data.worker import map_threads
from nin_jax.errors import UserError
from nin_jax.storage import expanded


def info(
    data_dir: str | None,
    *,
    size: int = 32,
    clusters: int = 0,
    each: int = 1,
    proposals: str = "windows",
    smallest: float = 900.0,
    classes: tuple[str, ...] = (),
) -> Info:
    """The facts of a devkit's folder. Raises `UserError`.

    Args:
      data_dir: the folder.
      size: height and width that a picture, or each of its hypotheses, is scaled to.
      clusters, each: of hypotheses; 0 clusters: the whole picture.
      proposals: "windows", "selective_search" or a JSON file.
      smallest: area of a hypothesis in pixels squared.
      classes: names of a folder's own classes; (): VOC's twenty.
    """
    del proposals, smallest
    shape = hypotheses.shape(size, 3, clusters, each)
    root = _root(data_dir)
    sizes = {name: len(annotations.listed(root, name)) for name in annotations.lists(root)}
    names = classes or VOC_CLASSES
    return Info("voc", len(names), shape, sizes, str(root), class_names=names, multilabel=True)


def load(
    split: str,
    data_dir: str | None,
    *,
    bad_records: str = "stop",
    size: int = 32,
    clusters: int = 0,
    each: int = 1,
    proposals: str = "windows",
    smallest: float = 900.0,
    classes: tuple[str, ...] = (),
) -> Split:
    """uint8 `[N, M * size, size, 3]` and int32 `[N, K]`, 1, 0 or -1, see `training.tasks.multilabel`.

    With `bad_records="skip"` a picture that cannot be read is named in a line and has the labels `UNREADABLE`.
    """
    arguments = size, clusters, each, proposals, smallest
    facts, root = info(data_dir, size=size, clusters=clusters, each=each, classes=classes), _root(data_dir)

    def read(name: str) -> Split:
        listed = annotations.voc(root, name, facts.class_names)
        labels = np.stack([annotations.presence(a.labels, a.difficult, facts.classes) for a in listed])
        stats = [
            (file, file.stat()) for file in (*(a.picture for a in listed), *filter(Path.is_file, [expanded(proposals)]))
        ]
        changes = [(str(file), stat.st_size, stat.st_mtime_ns) for file, stat in stats]
        make = functools.partial(_make, listed, labels, facts.image_shape, arguments, bad_records)
        return cached(f"voc-{name}", [arguments, changes, labels.tolist()], make)

    return take(split, facts.splits, read, f"voc {root}")


def image(
    pixels: np.ndarray,
    *,
    size: int = 32,
    clusters: int = 0,
    each: int = 1,
    proposals: str = "windows",
    smallest: float = 900.0,
    classes: tuple[str, ...] = (),
) -> np.ndarray:
    """The image that a network sees of a picture uint8 `[H, W, 3]`."""
    del classes
    return hypotheses.bag(pixels, size, clusters, each, proposals, smallest)


def _root(data_dir: str | None) -> Path:
    if data_dir is None:
        raise UserError("dataset voc: set --config.data_dir=PATH to a folder such as VOCdevkit/VOC2007")
    return tfds_voc.devkit(expanded(data_dir).absolute())


def _make(
    listed: list[Annotated],
    labels: np.ndarray,
    shape: tuple[int, int, int],
    arguments: tuple[int, int, int, str, float],
    bad_records: str,
) -> Split:
    def one(number: int) -> np.ndarray:
        a = listed[number]
        try:
            pixels = np.asarray(upright(open_picture(a.picture, FOLDER_FORMATS), 3, WHITE))
            if pixels.shape[1::-1] != a.size:
                raise Unreadable(f"it has {pixels.shape[1]} x {pixels.shape[0]} pixels, its annotation says {a.size}")
            return hypotheses.bag(pixels, *arguments, a.name)
        except Unreadable as error:
            try:
                bad_record(f"{a.picture} is not a readable picture", error, bad_records)
            except ValueError as why:
                raise UserError(str(why)) from error
            labels[number] = UNREADABLE
            return np.zeros(shape, np.uint8)

    return np.stack(list(map_threads(one, range(len(listed)), len(listed), "pictures of VOC"))), labels
