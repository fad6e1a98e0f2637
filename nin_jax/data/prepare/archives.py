"""The official archives of MNIST, CIFAR-10, CIFAR-100 and SVHN: which they are, and reading them."""

from __future__ import annotations

import dataclasses
import gzip
import io
import math
import struct
import tarfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io

from nin_jax.errors import ExitError, UserError, one_line

# split -> (images uint8 [N, H, W(, C)], labels uint8 [N, K]) of each file, to be iterated once
Splits = Mapping[str, Iterable[tuple[np.ndarray, np.ndarray]]]


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
    """What the official archives of one data set hold, as far as TFDS does not register it.

    Attributes:
        name: the name in TFDS.
        splits: split -> {file of records: number of records}, in the official order.
        labels: label feature -> file of its class names (None: there is none), in the order of the label bytes.
        id_digits: how many digits the number in an example's id has at least.
        archives: the files to download; `official` fills them in.
    """

    name: str
    splits: Mapping[str, Mapping[str, int]]
    labels: Mapping[str, str | None]
    id_digits: int = 5
    archives: Sequence[Archive] = ()


IMAGENET = "imagenet2012"  # which has no archives to download, see `pack`
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
        Dataset(
            "svhn_cropped",
            {
                "train": {"train_32x32.mat": 73_257},
                "test": {"test_32x32.mat": 26_032},
                "extra": {"extra_32x32.mat": 531_131},
            },
            {"label": None},
            id_digits=6,
        ),
    )
}


def command(name: str, data_dir: Path) -> str:
    """The command that prepares a data set: ours if there is one, otherwise TFDS's own, which needs TensorFlow."""
    if name == IMAGENET:
        return f"python -m nin_jax.data.prepare {name} --archives=FOLDER --data_dir={data_dir}"
    if name in DATASETS:
        return f"python -m nin_jax.data.prepare {name} --data_dir={data_dir}"
    return f"tfds build {name} --file_format=array_record --data_dir={data_dir}"


def official(name: str) -> Dataset:
    """The dataset `name` with the URLs, sizes and checksums that the installed TFDS registers for it."""
    import tensorflow_datasets as tfds

    registered: Any = tfds.builder_cls(name).url_infos
    archives = [Archive(url, int(info.size), info.checksum) for url, info in registered.items()]
    return dataclasses.replace(DATASETS[name], archives=archives)


def read(dataset: Dataset, folder: Path) -> tuple[Splits, dict[str, list[str]]]:
    """The examples of each split in the official order, and label -> class names where the archives have them.

    SVHN's files are read one after the other as its splits are iterated, since `extra` alone takes 1.6 GB.

    Args:
        dataset: what to read, from `official`.
        folder: where the archives lie, verified.

    Raises:
        UserError: an archive is damaged or holds something else.
    """
    match dataset.name:
        case "mnist":
            return _read_mnist(dataset, folder)
        case "svhn_cropped":
            files = dataset.splits.items()
            return {split: (read_mat(folder / f, n) for f, n in sizes.items()) for split, sizes in files}, {}
        case _:
            return _read_cifar(dataset, folder)


def _gunzip(path: Path, limit: int) -> bytes:
    """What the gzip file `path` holds, in memory; UserError if it is damaged or holds more than `limit` bytes."""
    try:
        with gzip.open(path) as file:
            data = file.read(limit + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    if len(data) > limit:
        raise UserError(f"{path} holds more than the expected {limit} bytes")
    return data


def _read_mnist(dataset: Dataset, folder: Path) -> tuple[Splits, dict[str, list[str]]]:
    """Images uint8 [N, 28, 28] and labels uint8 [N, 1] of each split, and no class names."""

    def idx(file: str, *shape: int) -> np.ndarray:
        # IDX: magic number (0, 0, 8 for uint8, rank) and sizes as big-endian uint32, then the bytes in C order.
        header = struct.pack(f">{1 + len(shape)}I", 0x0800 + len(shape), *shape)
        size = len(header) + math.prod(shape)
        data = _gunzip(folder / file, size)
        if len(data) != size or not data.startswith(header):
            raise UserError(f"{folder / file} is not an IDX file of shape {shape}")
        return np.frombuffer(data, np.uint8, offset=len(header)).reshape(shape)

    splits: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
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
        raise UserError(f"{path} is damaged: {error}") from error

    def content(file: str, smallest: int, largest: int) -> memoryview:
        member = members.get(file)
        if member is None or member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise UserError(f"{path} lacks the file {file}")
        if not smallest <= member.size <= largest:
            raise UserError(f"{path}: {file} has {member.size} bytes, expected {smallest} to {largest}")
        return memoryview(data)[member.offset_data : member.offset_data + member.size]

    splits: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for split, files in dataset.splits.items():
        for file in files:
            rows = np.frombuffer(content(file, sizes[file], sizes[file]), np.uint8).reshape(-1, record)
            images = rows[:, k:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            splits.setdefault(split, []).append((images, rows[:, :k]))
    # TFDS registers no sizes for the lists of class names; the longest is a few hundred bytes.
    names = {label: str(content(file, 1, 1 << 12), "ascii").split() for label, file in dataset.labels.items() if file}
    return splits, names


def read_mat(path: Path, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [n, 32, 32, 3] and labels uint8 [n, 1] of a MATLAB 5 file, whose label 10 is the digit 0.

    Only for a file with the right checksum: a forged one can crash SciPy's native reader, which no `except` would
    catch.
    """
    shapes = {"X": (32, 32, 3, n), "y": (n, 1)}
    try:
        stated = {name: shape for name, shape, _ in scipy.io.whosmat(path)}  # before any memory is spent on it
        for name, shape in shapes.items():
            if stated.get(name) != shape:
                raise UserError(f"{path}: {name} has the shape {stated.get(name)}, expected {shape}")
        held = scipy.io.loadmat(path, variable_names=list(shapes))
    except (ExitError, MemoryError):
        raise
    except Exception as error:  # SciPy raises anything on a damaged file
        raise UserError(f"{path} is damaged: {one_line(error)}") from error
    for name, shape in shapes.items():
        array = held.get(name)
        # The class, a text or a sparse matrix, shows only now.
        if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.shape != shape:
            raise UserError(f"{path}: {name} is no uint8 array of shape {shape}")
    wrong = held["y"][(held["y"] < 1) | (held["y"] > 10)]
    if len(wrong):
        raise UserError(f"{path}: y holds the label {wrong[0]}, expected 1 to 10")
    return held["X"].transpose(3, 0, 1, 2), held["y"] % 10
