"""Data sets as arrays: split syntax, decoding once, and the memory-mapped cache of what was decoded."""

from __future__ import annotations

import bisect
import concurrent.futures
import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from nin_jax import registry
from nin_jax.config import Config
from nin_jax.errors import Ending, Mistake, StorageFailed, nearest
from nin_jax.report import one_line, say, track

T = TypeVar("T")
R = TypeVar("R")

Split = tuple[np.ndarray, np.ndarray]  # images uint8 [N, H, W, C], labels int32 [N]

UNREADABLE = -(
    2**31
)  # the label of a record that could not be read: it keeps its place, so that slices stay what they are


class Info(NamedTuple):
    """A data set's facts.

    Attributes:
      name: its entry, and its name in TFDS if it comes from there.
      classes: number of classes.
      image_shape: (height, width, channels) of every image.
      splits: number of examples of each split.
      source: where it comes from.
      version: of the TFDS preparation, or of the rule that makes it.
      class_names: by label; empty where they have none but their numbers.
      streamed: whether it does not fit in memory, so that its pictures are decoded while the network computes.
      prepared: whether it is read from where it lies prepared in TFDS's layout.
    """

    name: str
    classes: int
    image_shape: tuple[int, int, int]
    splits: Mapping[str, int]
    source: str
    version: str = "1"
    class_names: tuple[str, ...] = ()
    streamed: bool = False
    prepared: bool = False


def take(split: str, sizes: Mapping[str, int], load: Callable[[str], Split], dataset: str) -> Split:
    """The examples that a TFDS split expression names, such as "train[:10%]+test".

    Args:
      split: the expression.
      sizes: number of examples of each whole split.
      load: returns a whole split by name.
      dataset: for the error messages.
    """
    chosen = []
    for name, first, last in parts(split, sizes, dataset):
        images, labels = load(name)
        chosen.append((images[first:last], labels[first:last]))
    images, labels = chosen[0] if len(chosen) == 1 else map(np.concatenate, zip(*chosen, strict=True))
    return images, labels


def parts(split: str, sizes: Mapping[str, int], dataset: str) -> list[tuple[str, int, int]]:
    """What a TFDS split expression names: (whole split, first example, one after the last) of each part, in order."""
    if sizes.get(split):  # a name alone; importing what reads the others takes a third of a second
        return [(split, 0, sizes[split])]
    import tensorflow_datasets as tfds

    infos = {
        name: tfds.core.SplitInfo(name=name, shard_lengths=[n], num_bytes=0, filename_template=None)
        for name, n in sizes.items()
    }
    try:
        found = [
            (part.splitname, *slice(part.from_, part.to).indices(sizes[part.splitname])[:2])
            for part in tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
        ]
    except (ValueError, AssertionError, AttributeError, TypeError) as error:
        for word in (part.split("[")[0].strip() for part in split.split("+")):
            if word not in sizes:
                raise Mistake(f"dataset {dataset} has no split {word!r}: {nearest(word, sizes)}") from error
        has = ", ".join(f"{n} in {name}" for name, n in sizes.items())
        raise Mistake(f"split {split!r} of {dataset} (examples: {has}): {one_line(error)}") from error
    if not any(last > first for _, first, last in found):
        raise Mistake(f"split {split!r} of {dataset} is empty")
    return found


def tfds_folder(info: Info, data_dir: str | None) -> Path:
    """ROOT/NAME/VERSION, where TFDS looks for a data set; ROOT is `data_dir`, or else by TFDS's own rule."""
    root = Path(os.path.expanduser(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"))
    return root / info.name / info.version


def from_tfds(info: Info, split: str, data_dir: str | None, bad_records: str = "stop") -> Split:
    """Reads a data set that lies prepared in TFDS's layout; decodes each split once.

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
        except Ending:  # a signal may arrive here too
            raise
        except Exception as error:  # the reader is native code and raises anything on a damaged file
            raise Mistake(f"{folder}: split {name!r} cannot be read: {one_line(error)}") from error
        return images, labels

    return take(split, prepared_splits(folder) or info.splits, load, info.name)


class Records(Sequence[Mapping[str, Any]]):
    """Encoded records of the parts of several sources, one part after the other; can be sent to other processes."""

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
    except Ending:
        raise
    except Exception as error:  # the reader is native code and raises anything on a damaged file
        raise Mistake(f"{folder}: split {split!r} cannot be read: {one_line(error)}") from error
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


def check_prepared(config: Config) -> None:
    """Raises `Mistake` that says how to prepare a data set in TFDS's layout if nothing of it is there."""
    info = getattr(registry.find("datasets", registry.parse_call(config.dataset)[0]), "INFO", None)
    if info and info.prepared:
        prepared_files(info, tfds_folder(info, config.data_dir), "*")


def prepared_files(info: Info, folder: Path, name: str) -> list[Path]:
    """The files of a prepared split. Raises `Mistake` that says how to prepare it if there are none."""
    files = sorted(folder.glob(f"{info.name}-{name}.array_record*"))
    if not files:
        from nin_jax.pipeline.prepare import command

        root = folder.parents[1]
        raise Mistake(
            f"dataset {info.name} {info.version} is not prepared in {root}: run `{command(info.name, root)}`, "
            "or set --config.data_dir to where it is"
        )
    return files


def prepared_splits(folder: Path) -> dict[str, int]:
    """Number of examples of each split that TFDS's dataset_info.json in `folder` states; {} if there is none."""
    try:
        splits = json.loads((folder / "dataset_info.json").read_text())["splits"]
        return {s["name"]: sum(map(int, s["shardLengths"])) for s in splits}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise Mistake(f"{folder / 'dataset_info.json'} cannot be read: {error!r}") from error


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
    from nin_jax.pipeline.pictures import open_picture

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


def bad_record(which: str, why: Exception, bad_records: str) -> None:
    """What a record that cannot be used leads to: `ValueError` with "stop", a line with "skip"."""
    if bad_records != "skip":
        raise ValueError(f"{which}: {one_line(why)}; bad_records='skip' leaves such records out") from why
    say(f"{which} is left out: {one_line(why)[:300]}")


def usable(split: Split, info: Info, which: str, bad_records: str) -> tuple[Split, int]:
    """The examples of a split whose label is one of the data set's classes, and how many are left out.

    Raises `Mistake` for the first that is not, with `bad_records="stop"`; and where nothing is left, or the pictures are
    not what `info` says.
    """
    images, labels = split
    if images.dtype != np.uint8 or images.shape != (len(labels), *info.image_shape):
        raise Mistake(
            f"{which}: images are {images.dtype} {list(images.shape)}, expected uint8 "
            f"{[len(labels), *info.image_shape]}"
        )
    bad = np.flatnonzero((labels < 0) | (labels >= info.classes))
    if not len(bad):
        return split, 0
    first = labels[bad[0]]
    why = (
        f"example {bad[0]} could not be read"
        if first == UNREADABLE
        else f"label {first} of example {bad[0]} is not between 0 and {info.classes - 1}"
    )
    said = f"{which}: {why}"
    if bad_records != "skip":
        raise Mistake(f"{said} ({len(bad)} of {len(labels)} are bad; bad_records='skip' leaves them out)")
    if len(bad) == len(labels):
        raise Mistake(f"{said}, and no other can be used either")
    say(f"{said}; {len(bad)} of {len(labels)} examples are left out")
    good = np.delete(np.arange(len(labels)), bad)
    return (images[good], labels[good]), len(bad)


def map_threads(f: Callable[[T], R], items: Iterable[T], total: int, what: str) -> Iterator[R]:
    """f of every item, in order, on all cores, under a progress bar; an error or a signal leaves the rest undone."""
    pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
    try:
        yield from track(pool.map(f, items), total, what)
    finally:
        pool.shutdown(cancel_futures=True)


def cache_dir() -> Path:
    """`$XDG_CACHE_HOME/nin_jax`, by default `~/.cache/nin_jax`."""
    return Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "nin_jax"


def cached(name: str, facts: Sequence[Any], make: Callable[[], Split]) -> Split:
    """Returns what `make` made for the same `facts`, memory-mapped; calls it if there is none, or a broken one.

    A cache entry is a folder named after `name` and a hash of `facts` with images.npy, labels.npy and their checksums. It
    is written under another name and renamed when complete, so a half-written one is never read.
    """
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    entry = cache_dir() / f"{name}-{digest}"
    if entry.exists():
        try:
            return _read(entry)
        except Ending:  # a signal may arrive here too
            raise
        except Exception as error:  # NumPy raises anything on a damaged file
            say(f"cached data set {entry} is broken ({one_line(error)}): decoding it again")
            shutil.rmtree(entry, ignore_errors=True)
    images, labels = make()
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=entry.parent, prefix=f".{name}-"))
        try:
            np.save(scratch / "images.npy", images, allow_pickle=False)
            np.save(scratch / "labels.npy", labels, allow_pickle=False)
            checksums = {"images": _checksum(images), "labels": _checksum(labels)}
            (scratch / "checksums.json").write_text(json.dumps(checksums))
            scratch.chmod(0o755)
            try:
                scratch.rename(entry)
            except OSError:
                if not entry.exists():  # else another process was first, with the same data
                    raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise StorageFailed(f"cannot cache the decoded data set in {entry.parent} (XDG_CACHE_HOME): {error}") from error
    try:
        return _read(entry)
    except Ending:
        raise
    except Exception:  # another process found a broken entry and is just removing this one in its place
        return images, labels


def _read(entry: Path) -> Split:
    images, labels = (
        np.load(entry / f"{part}.npy", mmap_mode="r", allow_pickle=False) for part in ("images", "labels")
    )
    checksums = json.loads((entry / "checksums.json").read_text())
    for part, array in (("images", images), ("labels", labels)):
        if _checksum(array) != checksums[part]:
            raise ValueError(f"{part}.npy: checksum differs")
    return images, np.array(labels)


def _checksum(array: np.ndarray) -> str:
    """dtype, shape and CRC-32: a flipped bit in the header of an .npy file shows too."""
    return f"{array.dtype} {array.shape} {zlib.crc32(np.ascontiguousarray(array).data):08x}"
