"""Packs ImageNet's official archives, or a tree of class folders, into TFDS's layout, without TensorFlow.

    FOLDER/ILSVRC2012_img_train.tar, FOLDER/ILSVRC2012_img_val.tar     as they are downloaded; never unpacked to disk
    FOLDER/train/n01440764/*.JPEG, FOLDER/val/n01440764/*.JPEG         or unpacked; the second also without class folders

Labels are those of TFDS, which are the official ones: class k is line k of its labels.txt, and the label of validation
picture n is line n of its validation_labels.txt. Records are ordered by a hash of their names, so that the first 10 %
of a split are a fair sample. Each core writes one shard at a time, under another name, and renames it when it is
complete; a later call continues with the missing ones.
"""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import io
import json
import multiprocessing
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from nin_jax.console import say, track
from nin_jax.data import views, worker
from nin_jax.data.pictures import STREAMED_PIXELS
from nin_jax.errors import UserError, one_line
from nin_jax.storage import write_json

NAME, VERSION = "imagenet2012", "5.1.0"
SPLITS = {"train": 1_281_167, "validation": 50_000}
TARS = {"train": "ILSVRC2012_img_train.tar", "validation": "ILSVRC2012_img_val.tar"}
FOLDERS = {"train": ("train",), "validation": ("val", "validation")}
SHARD_BYTES = 128 << 20  # of what is packed; TFDS has shards of this size too
LARGEST = 64 << 20  # bytes of an encoded picture; ImageNet's have up to 16 million
QUALITY = 90  # of a JPEG that is made smaller


class Member(NamedTuple):
    """An encoded picture: its name, its class, and where in which file its bytes are."""

    name: str
    label: int
    file: Path
    offset: int
    size: int


class Shard(NamedTuple):
    """A file to be written, and what goes into it."""

    path: Path
    members: list[Member]
    short: int


def pack(folder: Path, target: Path, short: int, processes: int) -> None:
    """Writes `target`, .../imagenet2012/5.1.0, for stock `tfds.data_source`.

    Args:
      folder: with the archives or the tree.
      target: written as its neighbour unfinished-5.1.0, and renamed in the end.
      short: what the short side is scaled down to, in pixels; 0: pictures stay as they are.
      processes: that pack at a time.

    Raises `UserError`.
    """
    found = {split: members for split in SPLITS if (members := _members(folder, split))}
    if not found:
        raise UserError(f"--archives={folder} has neither {' and '.join(TARS.values())}, nor the folders train and val")
    for split, members in found.items():
        classes = len({m.label for m in members})
        if (len(members), classes) != (SPLITS[split], 1000):
            say(f"warning: {split} has {len(members)} pictures of {classes} classes, not {SPLITS[split]} of 1000")
    scratch = unfinished(target)
    scratch.mkdir(parents=True, exist_ok=True)
    _same_as_before(scratch / "packed.json", found, short)
    shards = {split: _shards(scratch, split, members, short) for split, members in found.items()}
    wanted = [s for of_split in shards.values() for s in of_split if not s.path.exists()]
    every = sum(map(len, shards.values()))
    if len(wanted) < every:
        say(f"{every - len(wanted)} of {every} shards are there already")
    for _ in track(_in_processes(wanted, processes), len(wanted), f"packing {NAME} (shards)"):
        pass
    _describe(scratch, {split: [len(s.members) for s in of_split] for split, of_split in shards.items()})
    scratch.rename(target)


def unfinished(target: Path) -> Path:
    """Where the shards of `target` are until all are there."""
    return target.with_name(f"unfinished-{target.name}")


def _in_processes(shards: list[Shard], processes: int) -> Iterator[None]:
    if processes == 1:
        yield from map(write, shards)
        return
    spawn = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(processes, spawn, worker.begin)
    try:
        with worker.shielded():
            tasks = [pool.submit(write, shard) for shard in shards]
        for done in concurrent.futures.as_completed(tasks):
            yield done.result()
    except BrokenProcessPool as error:
        raise UserError(
            f"a process that packs was killed; if memory ran out, set --processes to less than {processes}"
        ) from error
    finally:
        for child in multiprocessing.active_children():  # else the executor waits for what they do, and, where one
            child.kill()  # of them was killed, for ever: it ends the others by SIGTERM, which they ignore
        pool.shutdown(cancel_futures=True)


def _same_as_before(path: Path, found: dict[str, list[Member]], short: int) -> None:
    """Raises `UserError` if shards made from something else lie beside `path`; else leaves there what they are made from."""
    digest = hashlib.sha256(repr({s: [(m.name, m.label, m.size) for m in ms] for s, ms in found.items()}).encode())
    facts = {"pictures": digest.hexdigest(), "short": short, "quality": QUALITY if short else None}
    before = json.loads(path.read_text()) if path.exists() else facts
    if before != facts:
        raise UserError(f"{path.parent} holds a preparation of other pictures or with another --short; remove it")
    write_json(path, facts)


def _tfds_lines(file: str) -> list[str]:
    import tensorflow_datasets as tfds

    return tfds.core.tfds_path(f"datasets/imagenet2012/{file}").read_text().split()


@functools.cache
def _label_of() -> dict[str, int]:
    """Label by WordNet number, such as n01440764."""
    return {wnid: i for i, wnid in enumerate(_tfds_lines("labels.txt"))}


@functools.cache
def _validation_label_of() -> dict[str, int]:
    """Label by name of a validation picture."""
    wnids = _tfds_lines("validation_labels.txt")
    return {f"ILSVRC2012_val_{i:08d}.JPEG": _label_of()[wnid] for i, wnid in enumerate(wnids, 1)}


def _members(folder: Path, split: str) -> list[Member]:
    """The pictures of a split, in the order in which they are packed; none if the split is not there."""
    tar = folder / TARS[split]
    tree = next((folder / name for name in FOLDERS[split] if (folder / name).is_dir()), None)
    if tar.is_file():
        size = tar.stat().st_size
        inner = _tar(tar, 0, size)
        if split == "validation":
            found = [(name, None, offset, n) for name, offset, n in inner]
        else:
            classes = list(track(inner, len(_label_of()), f"reading {tar.name} (classes)"))
            found = [(name, wnid, at, n) for wnid, a, b in classes for name, at, n in _tar(tar, a, b)]
        members = [Member(name, _label(tar, name, wnid), tar, offset, n) for name, wnid, offset, n in found]
    elif tree:
        files = [f for f in tree.rglob("*") if f.is_file() and not f.name.startswith(".")]
        wnid = {f: f.parent.name if f.parent != tree else None for f in files}
        members = [Member(f.name, _label(f, f.name, wnid[f]), f, 0, f.stat().st_size) for f in files]
    else:
        return []
    for member in members:
        if not 0 < member.size <= LARGEST:
            raise UserError(f"{member.file}: {member.name} has {member.size} bytes, expected 1 to {LARGEST}")
    if len({m.name for m in members}) < len(members):
        raise UserError(f"{folder}: two pictures of {split} have the same name")
    return sorted(members, key=lambda m: hashlib.sha256(m.name.encode()).digest())


def _tar(file: Path, start: int, size: int) -> Iterator[tuple[str, int, int]]:
    """Name without folders, offset in `file` and size of each member of the tar at that place. Raises `UserError`."""
    try:
        with file.open("rb") as whole:
            whole.seek(start)
            with tarfile.open(fileobj=whole, mode="r:") as tar:
                for member in tar:
                    if member.offset >= start + size:
                        return  # it is what follows the tar
                    if member.isdir():
                        continue
                    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
                        raise UserError(f"{file}: {member.name!r} is no regular file")
                    if member.offset_data + member.size > start + size:
                        raise UserError(f"{file} is cut off within {member.name!r}")
                    yield os.path.basename(member.name), member.offset_data, member.size
    except (tarfile.TarError, OverflowError, ValueError, UnicodeError) as error:
        raise UserError(f"{file} is damaged: {one_line(error)}") from error


def _label(where: Path, name: str, wnid: str | None) -> int:
    """The class of a picture: that of its folder or tar, or by its name."""
    if wnid is None:
        if name not in _validation_label_of():
            raise UserError(f"{where}: {name!r} is no picture of the validation split")
        return _validation_label_of()[name]
    if not re.fullmatch(r"[\w.-]+\.(JPEG|jpeg|jpg|png)", name, re.ASCII):
        raise UserError(f"{where}: {name!r} is no name of a picture")
    if wnid.removesuffix(".tar") not in _label_of():
        raise UserError(f"{where}: {wnid!r} is none of ImageNet's 1000 classes")
    return _label_of()[wnid.removesuffix(".tar")]


def _shards(folder: Path, split: str, members: Sequence[Member], short: int) -> list[Shard]:
    size = sum(m.size for m in members) // (4 if short else 1)  # about what is left of pictures made smaller
    count = max(1, min(1024, len(members), round(size / SHARD_BYTES)))
    ends = [len(members) * i // count for i in range(count + 1)]
    name = f"{NAME}-{split}.array_record"
    return [
        Shard(folder / f"{name}-{i:05d}-of-{count:05d}", list(members[ends[i] : ends[i + 1]]), short)
        for i in range(count)
    ]


def write(shard: Shard) -> None:
    """Writes one shard. Raises `UserError`."""
    from array_record.python.array_record_module import ArrayRecordWriter

    features = _features()
    scratch = shard.path.with_name(f".{shard.path.name}")
    writer = ArrayRecordWriter(os.fspath(scratch), "group_size:1")
    for member in shard.members:
        with member.file.open("rb") as file:
            file.seek(member.offset)
            data = encoded(file.read(member.size), shard.short, f"{member.file}: {member.name}")
        example = {"image": io.BytesIO(data), "label": member.label, "file_name": member.name}
        writer.write(features.serialize_example(features.encode_example(example)))
    writer.close()
    scratch.rename(shard.path)


def _info() -> Any:
    """What TFDS knows of the data set, to be filled in."""
    import tensorflow_datasets as tfds

    stock: Any = tfds.builder_cls(NAME)
    return stock(data_dir="/nonexistent", file_format="array_record").info


@functools.cache
def _features() -> Any:
    return _info().features


def encoded(data: bytes, short: int, what: str) -> bytes:
    """The JPEG to be stored: `data` itself, or scaled down to that short side (bilinear, quality 90).

    What is no JPEG, or none of red, green and blue (one picture and 22 of the official ones), is made one.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as picture:
            if picture.width * picture.height > STREAMED_PIXELS:
                raise UserError(f"{what}: {picture.width} x {picture.height} pixels are more than {STREAMED_PIXELS}")
            smaller = short and min(picture.size) > short
            if not smaller and picture.format == "JPEG" and picture.mode in ("RGB", "L"):
                return data
            result = picture.convert("RGB")
            if smaller:
                height, width = views.scaled(picture.height, picture.width, short)
                result = result.resize((width, height), Image.Resampling.BILINEAR)
            file = io.BytesIO()
            result.save(file, "JPEG", quality=QUALITY if smaller else 100)
            return file.getvalue()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{what} is no readable picture: {one_line(error)}") from error


def _describe(folder: Path, lengths: dict[str, list[int]]) -> None:
    """Writes what TFDS wants to know: dataset_info.json, features.json and the names of the classes."""
    from tensorflow_datasets.core import file_adapters, naming, splits

    info, described = _info(), []
    suffix = file_adapters.FileFormat.ARRAY_RECORD.file_suffix
    for split, of_split in lengths.items():
        where: Any = folder
        template = naming.ShardedFileTemplate(where, dataset_name=NAME, split=split, filetype_suffix=suffix)
        size = sum(f.stat().st_size for f in folder.glob(f"{NAME}-{split}.*"))
        described.append(splits.SplitInfo(split, of_split, size, template))
    info.set_splits(splits.SplitDict(described))
    info.write_to_directory(folder)
