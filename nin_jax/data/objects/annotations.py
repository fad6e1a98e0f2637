"""Pictures with boxes: folders of VOC's XML files, COCO's JSON. Whatever is wrong is named in one line, nothing is expanded."""

from __future__ import annotations

import glob
import json
import math
import os
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.parsers import expat

import numpy as np

from nin_jax.data.pictures import SUFFIXES
from nin_jax.errors import UserError, nearest, one_line

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
MOST_BYTES = 16 * 2**20  # of an XML file
YES, NO = ("1", "true"), ("0", "false", "")  # what programs write for difficult
ROUNDED = 0.01  # pixels: COCO's x and width have two digits each, and may end that far behind the picture


class Annotated(NamedTuple):
    """A picture and its objects.

    Attributes:
      name: of the picture, without its suffix.
      picture: its file.
      size: width and height in pixels.
      boxes: float64 `[N, 4]`, see `boxes`.
      labels: int32 `[N]`, indices of the classes.
      difficult: bool `[N]`.
    """

    name: str
    picture: Path
    size: tuple[int, int]
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray


def voc(root: Path, split: str, classes: Sequence[str] = VOC_CLASSES) -> list[Annotated]:
    """A split of a folder laid out as VOC's: Annotations/NAME.xml, JPEGImages/NAME.jpg, ImageSets/Main/SPLIT.txt.

    VOC's pixels begin with 1 and boxes include both ends, so x0 = xmin - 1 and x1 = xmax. Raises `UserError`.

    Args:
      root: such as VOCdevkit/VOC2007.
      split: "trainval", "test", ..., or "all": every annotation there is.
      classes: names, by label.
    """
    known = lists(root)  # it also says whether the folder is one
    if split == "all":
        # macOS leaves files named ._NAME.xml.
        names = sorted(file.stem for file in (root / "Annotations").glob("[!.]*.xml"))
    elif split not in known:
        raise UserError(f"split {split!r} of {root}: {nearest(split, [*known, 'all'])}")
    else:
        names = listed(root, split)
    return [_voc(root, name, classes) for name in names]


def lists(root: Path) -> list[str]:
    """The splits of a folder laid out as VOC's, such as ["test", "train", "trainval", "val"]. Raises `UserError`."""
    if not (root / "Annotations").is_dir():
        raise UserError(f"{root} has no folder Annotations: name one like VOCdevkit/VOC2007")
    return sorted(file.stem for file in (root / "ImageSets" / "Main").glob("*.txt") if "_" not in file.stem)


def listed(root: Path, split: str) -> list[str]:
    """The names of a split's pictures. Raises `UserError`."""
    file = root / "ImageSets" / "Main" / f"{split}.txt"
    try:
        names = [line.split()[0] for line in file.read_text().splitlines() if line.strip()]
        refuse_duplicates(names, str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {one_line(error)}") from error
    for name in names:
        if name != Path(name).name:
            raise UserError(f"{file}: {name!r} is not the name of a picture")
    return names


def refuse_duplicates(names: Sequence[Any], where: str) -> None:
    """Raises `UserError` if a name, or a number, is there twice."""
    if len(set(names)) < len(names):
        raise UserError(f"{where}: {max(names, key=names.count)!r} is there twice")


def presence(labels: np.ndarray, difficult: np.ndarray, classes: int) -> np.ndarray:
    """Which classes a picture has, as in VOC's lists: int32 `[classes]`.

    1: an object of it is there; 0: difficult ones alone; -1: none. `labels` `[N]` and `difficult` `[N]` are of its objects.
    """
    found = np.full(classes, -1, np.int32)
    found[labels[difficult]] = 0
    found[labels[~difficult]] = 1
    return found


def _voc(root: Path, name: str, classes: Sequence[str]) -> Annotated:
    file = root / "Annotations" / f"{name}.xml"
    tree = _parsed(file)
    beside = (root / "JPEGImages").glob(f"{glob.escape(name)}.*")
    pictures = sorted(p for p in beside if p.stem == name and p.suffix.lower() in SUFFIXES)
    if not pictures:
        raise UserError(f"{file}: its picture JPEGImages/{name}.jpg is missing")
    if len(pictures) > 1:
        raise UserError(f"{file}: {pictures[0]} and {pictures[1].name} may be its picture; move one away")
    size = _number(tree, "size/width", file), _number(tree, "size/height", file)
    objects = []
    for item in tree.iterfind("object"):
        corners = [_number(item, f"bndbox/{side}", file) for side in ("xmin", "ymin", "xmax", "ymax")]
        box = corners[0] - 1, corners[1] - 1, corners[2], corners[3]
        difficult = item.findtext("difficult", "").strip().lower()
        if difficult not in YES + NO:
            raise UserError(f"{file}: difficult is {difficult!r}, not 0 or 1")
        objects.append((box, item.findtext("name", "").strip(), difficult in YES))
    return _annotated(str(file), name, pictures[0], (int(size[0]), int(size[1])), objects, classes)


def _parsed(file: Path) -> ET.Element:
    """The root of an XML file without a document type, so without entities that could be expanded."""

    def refuse(*_: Any) -> None:
        raise UserError(f"{file}: XML with a document type is not read")

    try:
        if file.stat().st_size > MOST_BYTES:
            raise UserError(f"{file}: larger than {MOST_BYTES // 2**20} MiB")
        content = file.read_bytes()
        parser = expat.ParserCreate()
        parser.StartDoctypeDeclHandler = refuse
        parser.Parse(content, True)
        return ET.fromstring(content)  # noqa: S314 - what could be expanded was refused
    except OSError as error:
        raise UserError(f"{file} cannot be read: {one_line(error)}") from error
    except (expat.ExpatError, ET.ParseError, ValueError, LookupError) as error:  # also an encoding that is not known
        raise UserError(f"{file}: broken XML: {one_line(error)}") from error


def _number(tree: ET.Element, path: str, file: Path) -> float:
    text = tree.findtext(path)
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{file}: {path} is {text!r}, not a number")
    return value


def _annotated(
    what: str,
    name: str,
    picture: Path,
    size: tuple[int, int],
    objects: Iterable[tuple[tuple[float, ...], str, bool]],
    classes: Sequence[str],
) -> Annotated:
    """Checks the objects of a picture. Raises `UserError`."""
    boxes, labels, difficult = [], [], []
    for box, kind, hard in objects:
        x0, y0, x1, y1 = box
        if kind not in classes:
            raise UserError(f"{what}: unknown class {kind!r}: {nearest(kind, classes)}; classes=(...) names your own")
        if not (x0 < x1 and y0 < y1):  # nor do NaN
            raise UserError(f"{what}: the box {box} of a {kind} is empty")
        if min(x0, y0) < -ROUNDED or x1 > size[0] + ROUNDED or y1 > size[1] + ROUNDED:
            raise UserError(f"{what}: the box {box} of a {kind} reaches outside its picture of {size[0]} x {size[1]}")
        boxes.append((max(x0, 0), max(y0, 0), min(x1, size[0]), min(y1, size[1])))
        labels.append(list(classes).index(kind))
        difficult.append(hard)
    return Annotated(
        name,
        picture,
        size,
        np.array(boxes, np.float64).reshape(-1, 4),
        np.array(labels, np.int32),
        np.array(difficult, bool),
    )


def coco(file: Path, pictures: Path) -> tuple[list[Annotated], tuple[str, ...]]:
    """COCO's instances in a JSON file, and the names of their classes, in the order of their numbers.

    Its boxes are (x, y, width, height) from 0; crowds are taken for difficult. A picture in folders is called by all their
    names: "day1/yard.jpg" is "day1_yard". Raises `UserError`.

    Args:
      file: such as annotations/instances_val2017.json.
      pictures: the folder of the pictures.
    """
    try:
        content = json.loads(file.read_text())
        for part, what in (("categories", "id"), ("categories", "name"), ("images", "id")):
            refuse_duplicates([item[what] for item in content[part]], f"{file}: {part}, {what}")
        names = {c["id"]: str(c["name"]) for c in sorted(content["categories"], key=lambda c: c["id"])}
        classes, objects = tuple(names.values()), {image["id"]: [] for image in content["images"]}
        for item in content["annotations"]:
            x, y, width, height = map(float, item["bbox"])
            found = (x, y, x + width, y + height), names[item["category_id"]], bool(int(item.get("iscrowd") or 0))
            objects[item["image_id"]].append(found)
        listed = [(i["id"], str(i["file_name"]), (int(i["width"]), int(i["height"]))) for i in content["images"]]
    except OSError as error:
        raise UserError(f"{file} cannot be read: {one_line(error)}") from error
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f"{file}: not as COCO's instances: {type(error).__name__}: {one_line(error)}") from error
    annotated = []
    for number, name, size in listed:
        picture = pictures / name
        if not os.path.isfile(picture) or not picture.resolve().is_relative_to(pictures.resolve()):
            raise UserError(f"{file}: its picture {name} is not in {pictures}")
        called = "_".join(Path(name).with_suffix("").parts)
        annotated.append(_annotated(f"{file}, {name}", called, picture, size, objects[number], classes))
    refuse_duplicates([a.name for a in annotated], f"{file}: names of pictures without their suffix")
    return annotated, classes
