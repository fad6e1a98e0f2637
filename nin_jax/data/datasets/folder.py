"""My own pictures: a folder with one folder of JPEG or PNG files for each class.

    PATH/cat/1.jpg, PATH/cat/2.png, PATH/dog/...            a fifth of each class, of 2 to 4 pictures one, is "test"
    PATH/train/cat/..., PATH/test/cat/...                   or the splits are folders themselves

Classes are numbered in the alphabetical order of their folders' names. Pictures may lie deeper in a class folder; hidden
files and folders (their names begin with a dot) are left out.
"""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path

import numpy as np

from nin_jax.data.cache import cached
from nin_jax.data.splits import UNREADABLE, Info, Split, bad_record, take
from nin_jax.data.worker import map_threads
from nin_jax.errors import UserError

ENDINGS = (".jpg", ".jpeg", ".png")
HELD_OUT = 5  # every fifth picture of a class, in the order of a hash of its name

Files = dict[str, list[tuple[Path, int]]]


def info(data_dir: str | None, *, size: int = 32, channels: int = 3) -> Info:
    """The facts of the folder `data_dir`; every picture becomes size x size x channels (1: grey, 3: colour)."""
    files, classes = _list(data_dir)
    if not 1 <= size <= 1024 or channels not in (1, 3):
        raise UserError(f"dataset folder(size={size}, channels={channels}): size 1 to 1024, channels 1 or 3")
    splits = {name: len(entries) for name, entries in files.items()}
    return Info("folder", len(classes), (size, size, channels), splits, str(data_dir), class_names=tuple(classes))


def load(split: str, data_dir: str | None, bad_records: str = "stop", *, size: int = 32, channels: int = 3) -> Split:
    """uint8 `[N, size, size, channels]` and int32 `[N]`. The short side is scaled to `size`, the centre is kept.

    With `bad_records="skip"` a picture that cannot be read is named in a line and has the label `UNREADABLE`.
    """
    files, _ = _list(data_dir)
    facts = info(data_dir, size=size, channels=channels)

    def read(name: str) -> Split:
        stats = [(str(f), f.stat().st_size, f.stat().st_mtime_ns, label) for f, label in files[name]]
        make = functools.partial(_decode, files[name], facts.image_shape, name, bad_records)
        return cached(f"folder-{name}-{size}x{channels}", stats, make)

    return take(split, facts.splits, read, f"folder {data_dir}")


def _list(data_dir: str | None) -> tuple[Files, list[str]]:
    """Every split's files with their labels, and the classes."""
    if data_dir is None:
        raise UserError(
            "dataset folder: set --config.data_dir=PATH to a folder of class folders with JPEG or PNG files"
        )
    root = Path(os.path.expanduser(data_dir)).absolute()
    if not os.path.isdir(root):
        raise UserError(f"data_dir={data_dir}: no such folder")
    has_splits = (root / "train").is_dir()
    tops = {name: root / name for name in ("train", "test") if (root / name).is_dir()} if has_splits else {"all": root}
    classes = sorted({d.name for top in tops.values() for d in _folders(top)})
    files: Files = {}
    for name, top in tops.items():
        files[name] = []
        for label, kind in enumerate(classes):
            found = _pictures(top / kind)
            if not found:
                raise UserError(f"class folder {top / kind} holds no JPEG or PNG file")
            files[name] += [(f, label) for f in found]
    if len(classes) < 2:
        raise UserError(f"data_dir={data_dir}: {len(classes)} class folders found, at least 2 are needed")
    return (files if has_splits else _hold_out(files["all"], root)), classes


def _folders(top: Path) -> list[Path]:
    return [d for d in top.iterdir() if d.is_dir() and not d.name.startswith(".")]


def _pictures(folder: Path) -> list[Path]:
    found = (f.relative_to(folder) for f in folder.rglob("*") if f.suffix.lower() in ENDINGS)
    return [folder / f for f in sorted(found) if not any(part.startswith(".") for part in f.parts)]


def _hold_out(entries: list[tuple[Path, int]], root: Path) -> Files:
    """Splits one list; which pictures are held out depends on their names alone, class by class."""

    def luck(entry: tuple[Path, int]) -> str:
        return hashlib.sha256(os.fsencode(entry[0].relative_to(root).as_posix())).hexdigest()

    files: Files = {"train": [], "test": []}
    for label in sorted({label for _, label in entries}):
        ordered = sorted((e for e in entries if e[1] == label), key=luck)
        every = max(2, min(HELD_OUT, len(ordered)))  # a class with fewer than five still has one to test
        for i, entry in enumerate(ordered):
            files["test" if i % every == every - 1 else "train"].append(entry)
    return files


def _decode(files: list[tuple[Path, int]], shape: tuple[int, int, int], name: str, bad_records: str) -> Split:
    from PIL import Image, ImageOps

    from nin_jax.data.pictures import open_picture

    labels = np.array([label for _, label in files], np.int32)

    def one(number: int) -> np.ndarray:
        file, _ = files[number]
        try:
            upright = ImageOps.exif_transpose(open_picture(file))
            if upright.mode.startswith("I;16"):  # convert would clip at 255
                upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
            if upright.has_transparency_data:  # a palette's transparency has to be spelt out first
                upright = upright.convert("RGBA")
            upright = upright.convert("L" if shape[2] == 1 else "RGB")
            fitted = ImageOps.fit(upright, (shape[1], shape[0]), Image.Resampling.BILINEAR)
            return np.asarray(fitted, np.uint8).reshape(shape)
        except MemoryError:
            raise
        except Exception as error:  # Pillow raises anything on damaged EXIF data
            try:
                bad_record(f"{file} is not a readable picture", error, bad_records)
            except ValueError as why:
                raise UserError(str(why)) from error
            labels[number] = UNREADABLE
            return np.zeros(shape, np.uint8)

    images = list(map_threads(one, range(len(files)), len(files), f"decoding folder {name}"))
    return np.stack(images), labels
