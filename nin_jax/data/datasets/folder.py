"""My own pictures: a folder with one folder of pictures for each class.

    PATH/cat/1.jpg, PATH/cat/2.png, PATH/dog/...            a fifth of each class, of 2 to 4 pictures one, is "test"
    PATH/train/cat/..., PATH/val/cat/..., PATH/test/...     or the splits are folders themselves

Classes are numbered in the alphabetical order of their folders' names. `data.class_folders` says what is used and what
is refused; docs/own_pictures.md shows how to train on it.
"""

from __future__ import annotations

import functools
import os
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import ImageColor

from nin_jax.data.cache import cached
from nin_jax.data.class_folders import Entry, Found, describe, find, split_expression
from nin_jax.data.pictures import FOLDER_FORMATS, KINDS, look, open_picture, to_image
from nin_jax.data.splits import UNREADABLE, Info, Split, bad_record, take
from nin_jax.data.worker import map_threads
from nin_jax.errors import UserError

LISTED = 20  # most classes that the table has a line for; beyond that it names the smallest and the largest


def info(data_dir: str | None, *, size: int = 32, channels: int = 3, background: str = "white") -> Info:
    """The facts of the folder `data_dir`; every picture becomes size x size x channels (1: grey, 3: colour).

    Transparent pictures are laid on the `background`, a colour such as "white" or "#ff8000".
    """
    shape, _ = _wanted(size, channels, background)
    found = _find(data_dir)
    entries = [entry for of_split in found.splits.values() for entry in of_split]

    def make() -> Split:
        looks = list(map_threads(lambda e: look(e[0]), entries, len(entries), "looking at the pictures"))
        return np.array([[w, h] for w, h, _ in looks], np.int32), np.array(
            [KINDS.index(k) for *_, k in looks], np.uint8
        )

    sizes, kinds = cached("folder-looks", _stats(entries), make, ("sizes", "kinds"))
    kind_counts = {kind: int(np.sum(kinds == i)) for i, kind in enumerate(KINDS)}
    counts = {"pictures": len(entries), **kind_counts, "left_out": found.left_out.total()}
    return Info(
        "folder",
        len(found.classes),
        shape,
        {name: len(of_split) for name, of_split in found.splits.items()},
        str(data_dir),
        class_names=found.classes,
        found=tuple(_table(str(data_dir), found, sizes, kind_counts, background)),
        counts=counts,
    )


def load(
    split: str,
    data_dir: str | None,
    *,
    bad_records: str = "stop",
    size: int = 32,
    channels: int = 3,
    background: str = "white",
) -> Split:
    """uint8 `[N, size, size, channels]` and int32 `[N]`. The short side is scaled to `size`, the centre is kept.

    With `bad_records="skip"` a picture that cannot be read is named in a line and has the label `UNREADABLE`.
    """
    shape, ground = _wanted(size, channels, background)
    found = _find(data_dir)
    sizes = {name: len(of_split) for name, of_split in found.splits.items()}

    def read(name: str) -> Split:
        entries = found.splits[name]
        make = functools.partial(decoded, entries, shape, ground, name, bad_records)
        return cached(f"folder-{name}-{size}x{channels}", [background, *_stats(entries)], make)

    return take(split_expression(split), sizes, read, f"folder {data_dir}")


def _find(data_dir: str | None) -> Found:
    if data_dir is None:
        raise UserError("dataset folder: set --config.data_dir=PATH to a folder of class folders with pictures")
    root = Path(os.path.expanduser(data_dir)).absolute()
    if not os.path.isdir(root):
        raise UserError(f"data_dir={data_dir}: no such folder")
    return find(root)


def _wanted(size: int, channels: int, background: str) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """The shape of an image and the colour of its ground. Raises `UserError`."""
    if not 1 <= size <= 1024 or channels not in (1, 3):
        raise UserError(f"dataset folder(size={size}, channels={channels}): size 1 to 1024, channels 1 or 3")
    try:
        return (size, size, channels), ImageColor.getrgb(background)[:3]
    except ValueError as error:
        raise UserError(
            f"dataset folder(background={background!r}): not a colour such as 'white' or '#ff8000'"
        ) from error


def _stats(entries: list[Entry]) -> list[tuple[str, int, int, int]]:
    """What changes whenever a picture, its place or its label does."""
    facts = []
    for file, label in entries:
        try:
            stat = file.stat()
            facts.append((str(file), stat.st_size, stat.st_mtime_ns, label))
        except OSError:  # a link that leads nowhere
            facts.append((str(file), -1, -1, label))
    return facts


def _table(data_dir: str, found: Found, sizes: np.ndarray, kinds: dict[str, int], background: str) -> list[str]:
    """The table of what the folder holds."""
    numbers = {name: Counter(label for _, label in entries) for name, entries in found.splits.items()}
    width = max(map(len, found.classes))
    lines = [f"{data_dir}: {sum(map(len, found.splits.values()))} pictures of {len(found.classes)} classes"]
    if len(found.classes) <= LISTED:
        lines.append(" ".join([" " * width, *(f"{name:>10}" for name in numbers)]))
        for label, name in enumerate(found.classes):
            lines.append(" ".join([f"{name:{width}}", *(f"{of_split[label]:10}" for of_split in numbers.values())]))
    else:
        for name, of_split in numbers.items():
            (most, largest), (least, smallest) = of_split.most_common()[0], of_split.most_common()[-1]
            lines.append(
                f"{name}: {len(found.splits[name])}, from {smallest} of {found.classes[least]} to {largest} of {found.classes[most]}"
            )
    areas = sizes[:, 0].astype(np.int64) * sizes[:, 1]
    if (readable := np.flatnonzero(areas)).size:
        small, large = (sizes[readable[f(areas[readable])]] for f in (np.argmin, np.argmax))
        listed = ", ".join(f"{number} {kind}" for kind, number in kinds.items() if number)
        ground = f" (laid on {background})" if kinds["transparent"] else ""
        lines.append(f"sizes {small[0]} x {small[1]} to {large[0]} x {large[1]}; {listed}{ground}")
    lines.append(f"left out: {describe(found.left_out)}")
    return lines


def decoded(
    entries: list[Entry],
    shape: tuple[int, int, int],
    background: tuple[int, int, int],
    name: str,
    bad_records: str,
) -> Split:
    labels = np.array([label for _, label in entries], np.int32)

    def one(number: int) -> np.ndarray:
        file, _ = entries[number]
        try:
            return to_image(open_picture(file, FOLDER_FORMATS), shape, background)
        except MemoryError:
            raise
        except Exception as error:  # Pillow raises anything on damaged EXIF data
            try:
                bad_record(f"{file} is not a readable picture", error, bad_records)
            except ValueError as why:
                raise UserError(str(why)) from error
            labels[number] = UNREADABLE
            return np.zeros(shape, np.uint8)

    images = list(map_threads(one, range(len(entries)), len(entries), f"decoding folder {name}"))
    return np.stack(images), labels
