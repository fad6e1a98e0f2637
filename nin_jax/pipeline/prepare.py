"""Prepare MNIST, CIFAR-10 and CIFAR-100 for `tfds.data_source`, without TensorFlow.

    python -m nin_jax.pipeline.prepare cifar10                         # downloads the official archive
    python -m nin_jax.pipeline.prepare cifar10 --archives=~/Downloads  # the archive is already there

The result lies in `--data_dir` (default: TFDS's own rule) just as TFDS's own preparation would leave it, in ArrayRecord
format, but in the order of the official archive: the last 10,000 training images of CIFAR-10 are `data_batch_5`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import gzip
import hashlib
import http.client
import io
import math
import os
import shlex
import shutil
import ssl
import struct
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags, logging

from nin_jax.errors import Ending, Mistake, Preempted, StorageFailed, nearest

Splits = dict[str, list[tuple[np.ndarray, np.ndarray]]]  # split -> [(images uint8 [N, H, W(, C)], labels uint8 [N, K])]

RETRY_AFTER = (1.0, 3.0, 9.0)  # seconds between the attempts to download
NETWORK_ERRORS = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)


@dataclasses.dataclass(frozen=True)
class Archive:
    """One file to download: its URL, its size in bytes and its SHA-256 (hexadecimal)."""

    url: str
    size: int
    sha256: str

    @property
    def file(self) -> str:
        return self.url.rpartition("/")[2]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """What the official archives of one dataset hold, as far as TFDS does not register it.

    Attributes:
        name: the name in TFDS.
        splits: split -> {file of records: number of records}, in the official order.
        labels: label feature -> file of its class names (None: there is none), in the order of the label bytes.
        archives: the files to download; `official` fills them in.
    """

    name: str
    splits: Mapping[str, Mapping[str, int]]
    labels: Mapping[str, str | None]
    archives: Sequence[Archive] = ()


_CIFAR10, _CIFAR100 = "cifar-10-batches-bin", "cifar-100-binary"
_CIFAR10_TRAIN = {f"{_CIFAR10}/data_batch_{i}.bin": 10_000 for i in range(1, 6)}
_CIFAR100_LABELS = {
    "coarse_label": f"{_CIFAR100}/coarse_label_names.txt",
    "label": f"{_CIFAR100}/fine_label_names.txt",
}
DATASETS = {
    dataset.name: dataset
    for dataset in (
        Dataset("mnist", {"train": {"train": 60_000}, "test": {"t10k": 10_000}}, {"label": None}),
        Dataset(
            "cifar10",
            {"train": _CIFAR10_TRAIN, "test": {f"{_CIFAR10}/test_batch.bin": 10_000}},
            {"label": f"{_CIFAR10}/batches.meta.txt"},
        ),
        Dataset(
            "cifar100",
            {"train": {f"{_CIFAR100}/train.bin": 50_000}, "test": {f"{_CIFAR100}/test.bin": 10_000}},
            _CIFAR100_LABELS,
        ),
    )
}


def official(name: str) -> Dataset:
    """The dataset `name` with the URLs, sizes and checksums that the installed TFDS registers for it."""
    import tensorflow_datasets as tfds

    registered: Any = tfds.builder_cls(name).url_infos
    archives = [Archive(url, int(info.size), info.checksum) for url, info in registered.items()]
    return dataclasses.replace(DATASETS[name], archives=archives)


def prepare(dataset: Dataset, data_dir: Path, given: Path | None = None) -> None:
    """Write `data_dir`/NAME/VERSION for stock `tfds.data_source`; nothing to do if it is there already.

    TFDS writes to a temporary directory and renames it in the end, so a result is always complete.

    Args:
        dataset: what to prepare, from `official`.
        data_dir: root of the TFDS datasets, created if need be.
        given: the folder of the archives, which is only read; None downloads them to `data_dir`/downloads/NAME.

    Raises:
        Mistake: an archive is missing, cannot be downloaded or is not the official one; `data_dir` is not writable,
            in use by another preparation, or holds something else in that place.
    """
    import tensorflow_datasets as tfds

    stock: Any = tfds.builder_cls(dataset.name)(data_dir=data_dir)
    target = Path(stock.data_dir)
    if target.exists():
        # TFDS would silently take whatever lies there for the dataset.
        if not stock.is_prepared() or stock.info.file_format.value != "array_record":
            raise Mistake(f"{target} exists but is no ArrayRecord dataset: remove it or give another --data_dir")
        print(f"{dataset.name} is already prepared in {target}")
        return
    with _exclusive(dataset.name, data_dir) as downloads:
        for leftover in target.parent.glob(f"incomplete.*_{target.name}"):  # of a killed preparation
            shutil.rmtree(leftover)
        folder = _archives(dataset, data_dir, given, downloads)
        splits, class_names = _read_mnist(dataset, folder) if dataset.name == "mnist" else _read_cifar(dataset, folder)
        _write(dataset, data_dir, splits, class_names)


@contextlib.contextmanager
def _exclusive(name: str, data_dir: Path) -> Iterator[Path]:
    """Create and lock the folder for downloads: two preparations would delete each other's unfinished files."""
    downloads = data_dir / "downloads" / name
    try:
        downloads.mkdir(parents=True, exist_ok=True)
        lock = (downloads / "lock").open("w")
    except OSError as error:
        raise Mistake(f"--data_dir={data_dir} is not writable: {error}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Mistake(f"--data_dir={data_dir}: another process is preparing {name} there") from error
        yield downloads


def _archives(dataset: Dataset, data_dir: Path, given: Path | None, downloads: Path) -> Path:
    """The folder where all archives lie, verified: `given`, or `downloads` after what it lacked was downloaded."""
    if given and not given.is_dir():
        raise Mistake(f"--archives={given} is not a folder")
    folder = given or downloads
    for archive in dataset.archives:
        if (folder / archive.file).is_file():
            _verify(folder / archive.file, archive)
        elif given:
            raise Mistake(f"--archives={given} lacks {archive.file} (official: {archive.url})")
        else:
            try:
                _download(archive, downloads)
            except NETWORK_ERRORS as error:
                missing = " ".join(a.url for a in dataset.archives if not (downloads / a.file).is_file())
                command = f"python -m nin_jax.pipeline.prepare {dataset.name} " + shlex.join(
                    [f"--archives={downloads}", f"--data_dir={data_dir}"]
                )
                raise Mistake(
                    f"cannot download {archive.url} ({error}): fetch {missing} into {downloads} by other means, "
                    f"then run: {command}"
                ) from error
    return folder


def _verify(path: Path, archive: Archive) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != archive.sha256:
        raise Mistake(f"{path}: SHA-256 is {found}, expected {archive.sha256}: replace it with {archive.url}")


def _download(archive: Archive, folder: Path) -> None:
    """Fetch `folder`/FILE by way of FILE.part, with which a later attempt or call goes on."""
    from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

    part = folder / f"{archive.file}.part"
    with Progress(*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn()) as bar:
        task = bar.add_task(archive.file, total=archive.size)
        for pause in (*RETRY_AFTER, None):
            try:
                for size in _append(archive, part):
                    bar.update(task, completed=size)
                break
            except NETWORK_ERRORS:
                if pause is None:
                    raise
                time.sleep(pause)
    try:
        _verify(part, archive)
    except Mistake:
        part.unlink()  # no later attempt can complete it
        raise
    part.replace(folder / archive.file)


def _append(archive: Archive, part: Path) -> Iterator[int]:
    """One attempt to complete `part`; yields its size after each chunk, never more than `archive.size`."""
    size = part.stat().st_size if part.exists() else 0
    if size < archive.size:
        request = urllib.request.Request(archive.url, headers={"Range": f"bytes={size}-"})  # noqa: S310 - a URL of the table
        with (
            urllib.request.urlopen(request, timeout=30) as response,  # noqa: S310
            # A server that ignores Range answers 200 and begins again, so do we.
            part.open("ab" if response.status == 206 else "wb") as file,
        ):
            size = file.tell()
            while size < archive.size and (chunk := response.read(min(1 << 18, archive.size - size))):
                file.write(chunk)
                size += len(chunk)
                yield size
    if size < archive.size:
        raise ConnectionError(f"the connection ended after {size} of {archive.size} bytes")


def _gunzip(path: Path, limit: int) -> bytes:
    """What the gzip file `path` holds, in memory; Mistake if it is damaged or holds more than `limit` bytes."""
    try:
        with gzip.open(path) as file:
            data = file.read(limit + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise Mistake(f"{path} is damaged: {error}") from error
    if len(data) > limit:
        raise Mistake(f"{path} holds more than the expected {limit} bytes")
    return data


def _read_mnist(dataset: Dataset, folder: Path) -> tuple[Splits, dict[str, list[str]]]:
    """Images uint8 [N, 28, 28] and labels uint8 [N, 1] of each split, and no class names."""

    def idx(file: str, *shape: int) -> np.ndarray:
        # IDX: magic number (0, 0, 8 for uint8, rank) and sizes as big-endian uint32, then the bytes in C order.
        header = struct.pack(f">{1 + len(shape)}I", 0x0800 + len(shape), *shape)
        size = len(header) + math.prod(shape)
        data = _gunzip(folder / file, size)
        if len(data) != size or not data.startswith(header):
            raise Mistake(f"{folder / file} is not an IDX file of shape {shape}")
        return np.frombuffer(data, np.uint8, offset=len(header)).reshape(shape)

    splits: Splits = {}
    for split, files in dataset.splits.items():
        for prefix, n in files.items():
            images, labels = idx(f"{prefix}-images-idx3-ubyte.gz", n, 28, 28), idx(f"{prefix}-labels-idx1-ubyte.gz", n)
            splits.setdefault(split, []).append((images, labels[:, None]))
    return splits, {}


def _read_cifar(dataset: Dataset, folder: Path) -> tuple[Splits, dict[str, list[str]]]:
    """Images uint8 [N, 32, 32, 3] and labels uint8 [N, K] of each split, and label -> class names."""
    path = folder / dataset.archives[0].file
    k = len(dataset.labels)
    record = k + 3 * 32 * 32  # bytes: the labels, then the red, the green and the blue plane
    sizes = {file: n * record for files in dataset.splits.values() for file, n in files.items()}
    # The whole tar in memory, never on disk; beside the records there is room for headers and small text files.
    data = _gunzip(path, sum(sizes.values()) + (1 << 24))
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            members = {member.name.removeprefix("./"): member for member in tar}
    except tarfile.TarError as error:
        raise Mistake(f"{path} is damaged: {error}") from error

    def content(file: str, smallest: int, largest: int) -> memoryview:
        member = members.get(file)
        if member is None or member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise Mistake(f"{path} lacks the file {file}")
        if not smallest <= member.size <= largest:
            raise Mistake(f"{path}: {file} has {member.size} bytes, expected {smallest} to {largest}")
        return memoryview(data)[member.offset_data : member.offset_data + member.size]

    splits: Splits = {}
    for split, files in dataset.splits.items():
        for file in files:
            rows = np.frombuffer(content(file, sizes[file], sizes[file]), np.uint8).reshape(-1, record)
            images = rows[:, k:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            splits.setdefault(split, []).append((images, rows[:, :k]))
    # TFDS registers no sizes for the lists of class names; the longest is a few hundred bytes.
    names = {label: str(content(file, 1, 1 << 12), "ascii").split() for label, file in dataset.labels.items() if file}
    return splits, names


def _write(dataset: Dataset, data_dir: Path, splits: Splits, class_names: Mapping[str, list[str]]) -> None:
    """Let TFDS write the dataset: the stock builder, but fed with `splits`, and in their order."""
    import tensorflow_datasets as tfds
    from PIL import Image

    stock: Any = tfds.builder_cls(dataset.name)

    # TFDS takes skip_registration, but pyright loses it among the other base classes.
    class Builder(stock, skip_registration=True):  # pyright: ignore[reportGeneralTypeIssues, reportCallIssue]
        name = stock.name
        __module__ = stock.__module__  # TFDS writes it to dataset_info.json and looks for metadata beside it

        def _info(self) -> tfds.core.DatasetInfo:
            info = super()._info()
            info.as_proto.disable_shuffling = True
            for label, names in class_names.items():
                info.features[label].names = names
            return info

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
            return {split: self._generate_examples(split) for split in splits}

        def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
            rows = (row for images, labels in splits[split] for row in zip(images, labels, strict=True))
            for index, (image, labels) in enumerate(rows):
                # TFDS encodes arrays with TensorFlow, but Pillow images with Pillow (to PNG).
                example = {"image": Image.fromarray(image), **dict(zip(dataset.labels, map(int, labels), strict=True))}
                if "id" in self.info.features:
                    example["id"] = f"{split}_{index:05d}"
                yield index, example

    Builder(data_dir=data_dir).download_and_prepare(file_format="array_record")


def main(argv: Sequence[str]) -> None:
    """Prepare the dataset that the one argument names, as the flags say."""
    logging.set_verbosity(logging.WARNING)  # `app.run` would let TFDS tell every step
    match argv[1:]:
        case [name] if name in DATASETS:
            data_dir = Path(flags.FLAGS.data_dir).expanduser()
            given = None if flags.FLAGS.archives is None else Path(flags.FLAGS.archives).expanduser()
            try:
                prepare(official(name), data_dir, given)
            except KeyboardInterrupt as error:
                raise Preempted("interrupted: start the same command again, a download goes on") from error
            except OSError as error:
                raise StorageFailed(f"cannot prepare {name} in {data_dir}: {error}") from error
        case [name]:
            raise Mistake(f"unknown dataset {name!r}: {nearest(name, DATASETS)}")
        case _:
            raise Mistake(f"one dataset to prepare is expected (valid: {', '.join(sorted(DATASETS))})")


def run() -> None:
    """The entry point: any known ending is one line on stderr and its exit code."""
    default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    flags.DEFINE_string("data_dir", default, "root of the prepared datasets, as in tfds.data_source")
    flags.DEFINE_string("archives", None, "folder with the official archives; default: download them")
    try:
        app.run(main, flags_parser=flags.FLAGS)
    except (Ending, flags.Error) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        sys.exit(getattr(error, "exit_code", Mistake.exit_code))


if __name__ == "__main__":
    run()
