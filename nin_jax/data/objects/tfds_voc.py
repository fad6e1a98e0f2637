"""TFDS's `voc` 5.0.0 as a folder laid out as VOC's: each record becomes a picture and its XML, once, in the cache."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nin_jax.console import track
from nin_jax.data import tfds
from nin_jax.data.cache import entry_of, filling
from nin_jax.data.objects.annotations import VOC_CLASSES
from nin_jax.data.pictures import open_picture
from nin_jax.errors import ExitError, UserError, one_line

LISTS = {"train": ("train", "trainval"), "validation": ("val", "trainval"), "test": ("test",)}


def devkit(folder: Path) -> Path:
    """The same pictures in VOC's layout, for a folder that TFDS has prepared, ROOT/voc/2007/5.0.0; others as they are.

    TFDS keeps ymin / height and so on of the numbers in the XML, without the 1 that VOC's first pixel has; they are written
    as they were there, and `annotations.voc` takes it off. Raises `UserError` for records that cannot be read.
    """
    if not (folder / "dataset_info.json").is_file():
        return folder
    files = tfds.shards("voc", folder)
    if broken := [file for file, records in files.items() if not tfds.is_whole(file, records)]:
        raise UserError(f"{broken[0]} is missing or incomplete: prepare voc by TFDS with file_format='array_record'")
    facts = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    entry = entry_of("voc-devkit", facts)
    if entry.is_dir():
        return entry
    try:
        with filling(entry) as scratch:
            _unpack(folder, scratch)
    except (ExitError, OSError):
        raise
    except Exception as error:  # the reader is native code and raises anything on a damaged file
        raise UserError(f"{folder} cannot be read: {one_line(error)}") from error
    return entry


def _unpack(folder: Path, target: Path) -> None:
    # Not by TFDS's own reader, which imports what features.json names.
    from array_record.python.array_record_module import ArrayRecordReader

    lists: dict[str, list[str]] = {}
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (target / name).mkdir(parents=True)
    for split in tfds.prepared_splits(folder):
        files = tfds.shards("voc", folder, split)
        for file, records in track(files.items(), len(files), f"files of TFDS's voc {split}"):
            reader = ArrayRecordReader(os.fspath(file))
            for i in range(records):
                stem = _write(_features(reader.read([i])[0]), target)
                for name in LISTS.get(split, (split,)):
                    lists.setdefault(name, []).append(stem)
            reader.close()
    for name, stems in lists.items():
        (target / f"ImageSets/Main/{name}.txt").write_text("".join(f"{stem}\n" for stem in sorted(stems)))


def _features(record: bytes) -> Mapping[str, Any]:
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example.FromString(record)  # pyright: ignore[reportAttributeAccessIssue]
    return example.features.feature


def _write(found: Mapping[str, Any], target: Path) -> str:
    """Writes the picture of a record and its XML; the picture's name, without its suffix."""
    picture, file = found["image"].bytes_list.value[0], found["image/filename"].bytes_list.value[0].decode()
    if file != Path(file).name:
        raise UserError(f"image/filename is {file!r}, not the name of a picture")
    (target / "JPEGImages" / file).write_bytes(picture)
    with open_picture(picture) as opened:
        width, height = opened.size
    page = ET.Element("annotation")
    size = ET.SubElement(page, "size")
    ET.SubElement(size, "width").text, ET.SubElement(size, "height").text = str(width), str(height)
    boxes = list(found["objects/bbox"].float_list.value)
    labels, difficult = (found[f"objects/{name}"].int64_list.value for name in ("label", "is_difficult"))
    for i, (label, hard) in enumerate(zip(labels, difficult, strict=True)):
        item = ET.SubElement(page, "object")
        ET.SubElement(item, "name").text = VOC_CLASSES[label]
        ET.SubElement(item, "difficult").text = str(int(hard))
        corners = zip(("ymin", "xmin", "ymax", "xmax"), boxes[4 * i : 4 * i + 4], (height, width) * 2, strict=True)
        box = ET.SubElement(item, "bndbox")
        for side, share, whole in corners:
            ET.SubElement(box, side).text = str(round(share * whole))
    ET.ElementTree(page).write(target / "Annotations" / f"{Path(file).stem}.xml")
    return Path(file).stem
