"""Data sets prepared in the layout of tensorflow-datasets: their records, and decoding them."""

from __future__ import annotations

import bisect
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nin_jax import registry
from nin_jax.data.cache import cached
from nin_jax.data.splits import UNREADABLE, Info, Split, bad_record, parts, take
from nin_jax.data.worker import map_threads
from nin_jax.errors import ExitError, UserError, one_line
from nin_jax.storage import local_path


def tfds_folder(info: Info, data_dir: str | None) -> Path:
    """ROOT/NAME/VERSION, where TFDS looks for a data set; ROOT is `data_dir`, or else by TFDS's own rule."""
    text = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    try:
        root = Path(os.path.expanduser(local_path(text)))
    except ValueError as error:
        raise UserError(f"TFDS_DATA_DIR={text}: {error}") from error
    return root / info.name / info.version


def from_tfds(info: Info, split: str, data_dir: str | None = None, *, bad_records: str = "stop") -> Split:
    """Reads a data set prepared in TFDS's layout; decodes each split once.

    With `bad_records="skip"` a record that cannot be read is named in a line and has the label `UNREADABLE`.
    """
    folder = tfds_folder(info, data_dir)

    def load(name: str) -> Split:
        files = prepared_files(info, folder, name)
        facts = [info.name, info.version, name, *((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files)]
        return cached(f"{info.name}-{info.version}-{name}", facts, lambda: decode(name))

    def decode(name: str) -> Split:
        try:
            source = _open(info, folder, name)
            images = np.empty((len(source), *info.image_shape), np.uint8)
            labels = np.empty(len(source), np.int32)
            decode_all(source.__getitem__, images, labels, f"{info.name} {name}", bad_records)
        except ExitError:  # a signal may arrive here too
            raise
        except Exception as error:  # the reader is native code and raises anything on a damaged file
            raise UserError(f"{folder}: split {name!r} cannot be read: {one_line(error)}") from error
        return images, labels

    return take(split, prepared_splits(folder) or info.splits, load, info.name)


class Records(Sequence[Mapping[str, Any]]):
    """Encoded records of several parts of sources, one after the other; picklable, for worker processes."""

    def __init__(self, chosen: Sequence[tuple[Any, int, int]]):
        self.chosen = [(source, first, last) for source, first, last in chosen if last > first]
        self.ends = np.cumsum([last - first for _, first, last in self.chosen]).tolist()

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> Mapping[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = bisect.bisect_right(self.ends, index)
        source, _, last = self.chosen[part]
        return source[last - (self.ends[part] - index)]


def tfds_records(info: Info, split: str, data_dir: str | None) -> Records:
    """The encoded records of a data set that lies prepared in TFDS's layout."""
    folder = tfds_folder(info, data_dir)
    for name in info.splits:  # before anything is said about the split
        if split.startswith(name):
            prepared_files(info, folder, name)
    chosen = parts(split, prepared_splits(folder) or info.splits, info.name)
    try:
        sources = {name: _open(info, folder, name) for name, _, _ in chosen if prepared_files(info, folder, name)}
    except ExitError:
        raise
    except Exception as error:  # the reader is native code and raises anything on a damaged file
        raise UserError(f"{folder}: split {split!r} cannot be read: {one_line(error)}") from error
    return Records([(sources[name], first, last) for name, first, last in chosen])


def _open(info: Info, folder: Path, name: str) -> Sequence[Mapping[str, Any]]:
    """The records of a whole split, with encoded images."""
    import tensorflow_datasets as tfds

    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    return _Examples(
        tfds.data_source(info.name, split=name, data_dir=folder.parents[1], download=False, deserialize_method=raw)
    )


class _Examples(Sequence[Mapping[str, Any]]):
    """The "image" (encoded) and the "label" of serialised records; in TFDS itself that costs a quarter of decoding a small picture."""

    def __init__(self, source: Any):
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Mapping[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        from tensorflow_datasets.proto import tf_example_pb2

        example = tf_example_pb2.Example.FromString(self.source[index])  # pyright: ignore[reportAttributeAccessIssue]
        features = example.features.feature
        return {"image": features["image"].bytes_list.value[0], "label": features["label"].int64_list.value[0]}


def check_prepared(dataset: str, data_dir: str | None) -> None:
    """Raises `UserError`, saying how to prepare the data set, unless all of it is there.

    Args:
      dataset: the name of an entry of datasets/.
      data_dir: as in `tfds_folder`.
    """
    info = getattr(registry.find("datasets", dataset), "INFO", None)
    if info and info.prepared:
        prepared_files(info, tfds_folder(info, data_dir))


def prepared_files(info: Info, folder: Path, split: str | None = None) -> list[Path]:
    """The files of a prepared split, or of all.

    If one is missing or incomplete, raises `UserError` saying how to prepare them.
    """
    files = shards(info.name, folder, split)
    broken = [path for path, records in files.items() if not is_whole(path, records)]
    if broken or not files:
        from nin_jax.data.prepare.archives import command

        root = folder.parents[1]
        state = (
            f"lacks {broken[0].name} or has a part of it alone" if 0 < len(broken) < len(files) else "is not prepared"
        )
        raise UserError(
            f"dataset {info.name} {info.version} {state} in {root}: run `{command(info.name, root)}`, "
            "or set --config.data_dir to where it is"
        )
    return list(files)


def shards(name: str, folder: Path, split: str | None = None) -> dict[Path, int]:
    """The files of a prepared data set, or of one split, and the records of each, by its dataset_info.json."""
    return {
        folder / f"{name}-{of}.array_record-{i:05d}-of-{len(lengths):05d}": length
        for of, lengths in _shard_lengths(folder).items()
        for i, length in enumerate(lengths)
        if split in (None, of)
    }


def is_whole(shard: Path, records: int) -> bool:
    """Whether a file is there and has that many records; in a truncated one the reader finds none."""
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        if not shard.stat().st_size:
            return not records
        reader = ArrayRecordReader(os.fspath(shard))
        try:
            return reader.num_records() == records
        finally:
            reader.close()
    except Exception:  # the reader is native code and raises anything on a damaged file
        return False


def prepared_splits(folder: Path) -> dict[str, int]:
    """Number of examples of each split that TFDS's dataset_info.json in `folder` states; {} if there is none."""
    return {split: sum(lengths) for split, lengths in _shard_lengths(folder).items()}


def _shard_lengths(folder: Path) -> dict[str, list[int]]:
    try:
        splits = json.loads((folder / "dataset_info.json").read_text())["splits"]
        return {s["name"]: [int(n) for n in s["shardLengths"]] for s in splits}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{folder / 'dataset_info.json'} cannot be read: {error!r}") from error


def decode_all(
    record: Callable[[int], Mapping[str, Any]],
    images: np.ndarray,
    labels: np.ndarray,
    what: str,
    bad_records: str = "stop",
) -> None:
    """Decodes record 0, 1, ... into `images` and `labels`, on all cores, with a progress bar.

    Args:
      record: the encoded "image" and the "label" of a record.
      images, labels: what is filled, uint8 `[N, H, W, C]` and int32 `[N]`.
      what: the split, for the messages.
      bad_records: at a record that cannot be read, "stop" raises `ValueError`; "skip" says it in a line and goes on.
    """
    from nin_jax.data.pictures import open_picture

    def one(i: int) -> None:
        try:
            found = record(i)
            pixels = np.asarray(open_picture(found["image"]))
            if pixels.size != images[i].size:
                raise ValueError(f"a picture of shape {pixels.shape}, expected {images.shape[1:]}")
            images[i] = pixels.reshape(images.shape[1:])
            labels[i] = found["label"]
        except MemoryError:
            raise
        except Exception as error:  # the reader is native code and raises anything on a damaged file
            bad_record(f"record {i} of {what}", error, bad_records)
            images[i], labels[i] = 0, UNREADABLE

    for _ in map_threads(one, range(len(labels)), len(labels), f"decoding {what}"):
        pass
