"""`nin_jax.data.prepare` on small archives of the official formats, read back with stock TFDS."""

from __future__ import annotations

import dataclasses
import fcntl
import gzip
import hashlib
import http.server
import io
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import scipy.sparse
import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle

from nin_jax import registry, storage
from nin_jax.data.prepare import prepare
from nin_jax.data.prepare.archives import DATASETS, Archive, Dataset, official
from nin_jax.data.tfds import check_prepared
from nin_jax.errors import UserError

ROOT = Path(__file__).parents[2]
VERSIONS = {"mnist": "3.0.1", "cifar10": "3.0.2", "cifar100": "3.0.2", "svhn_cropped": "3.1.0"}
FEATURES = {
    "mnist": {"image", "label"},
    "cifar10": {"id", "image", "label"},
    "cifar100": {"id", "image", "label", "coarse_label"},
    "svhn_cropped": {"id", "image", "label"},
}
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
CLASS_NAMES = {  # of what the tests write; the names of CIFAR-10 are the official ones
    "mnist": {"label": [str(digit) for digit in range(10)]},
    "cifar10": {"label": CIFAR10},
    "cifar100": {"coarse_label": [f"super_{i}" for i in range(20)], "label": [f"fine_{i}" for i in range(100)]},
    "svhn_cropped": {"label": [str(digit) for digit in range(10)]},
}
COUNTS = {"train": 60, "test": 20, "extra": 30}  # extra: of SVHN alone

Images = dict[str, np.ndarray]  # split -> uint8 [N, H, W, C]
Labels = dict[str, dict[str, np.ndarray]]  # split -> label feature -> uint8 [N]


@dataclasses.dataclass(frozen=True)
class Sample:
    """A small dataset, and what has to come out of it."""

    dataset: Dataset
    folder: Path
    images: Images
    labels: Labels

    @property
    def path(self) -> Path:
        return self.folder / self.dataset.archives[0].file


def archive(path: Path, base: str = "http://127.0.0.1:1/") -> Archive:
    content = path.read_bytes()
    return Archive(base + path.name, len(content), hashlib.sha256(content).hexdigest())


def tar_gz(path: Path, members: dict[str, bytes | tarfile.TarInfo]) -> None:
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def cifar_members(sample: Sample) -> dict[str, bytes | tarfile.TarInfo]:
    """The files of a CIFAR archive, not in the order in which they have to be read."""
    members: dict[str, bytes | tarfile.TarInfo] = {"cifar/readme.html": b"<html>"}
    for split, files in sample.dataset.splits.items():
        label_bytes = [sample.labels[split][label][:, None] for label in sample.dataset.labels]
        rows = np.concatenate([*label_bytes, sample.images[split].transpose(0, 3, 1, 2).reshape(-1, 3072)], axis=1)
        start = 0
        for file, n in files.items():
            members[file] = rows[start : start + n].tobytes()
            start += n
    for label, file in sample.dataset.labels.items():
        members[file] = ("\n".join(CLASS_NAMES[sample.dataset.name][label]) + "\n\n").encode()
    return dict(reversed(members.items()))


def mat(sample: Sample, split: str) -> dict[str, Any]:
    """The variables of a file of SVHN: X uint8 [32, 32, 3, N], y uint8 [N, 1] from 1 to 10."""
    digits = sample.labels[split]["label"]
    return {"X": sample.images[split].transpose(1, 2, 3, 0), "y": np.where(digits == 0, 10, digits)[:, None]}


def with_members(sample: Sample, members: dict[str, bytes | tarfile.TarInfo]) -> Dataset:
    """The dataset with an archive of these members, whose checksum is right."""
    tar_gz(sample.path, members)
    return dataclasses.replace(sample.dataset, archives=[archive(sample.path)])


def make(name: str, folder: Path) -> Sample:
    rng = np.random.default_rng(len(name))
    shape = (28, 28, 1) if name == "mnist" else (32, 32, 3)
    official = DATASETS[name].splits
    images = {split: rng.integers(0, 256, (COUNTS[split], *shape), np.uint8) for split in official}
    labels = {
        split: {
            label: rng.integers(0, len(names), COUNTS[split], np.uint8) for label, names in CLASS_NAMES[name].items()
        }
        for split in official
    }
    splits = {split: {f: COUNTS[split] // len(files) for f in files} for split, files in official.items()}
    sample = Sample(dataclasses.replace(DATASETS[name], splits=splits), folder, images, labels)
    if name == "mnist":
        paths = []
        for split, prefix in (("train", "train"), ("test", "t10k")):
            for kind, data in (("images-idx3", images[split][..., 0]), ("labels-idx1", labels[split]["label"])):
                paths.append(folder / f"{prefix}-{kind}-ubyte.gz")
                header = struct.pack(f">{1 + data.ndim}I", 0x0800 + data.ndim, *data.shape)
                paths[-1].write_bytes(gzip.compress(header + data.tobytes(), mtime=0))
    elif name == "svhn_cropped":
        paths = [folder / file for files in splits.values() for file in files]
        for path, split in zip(paths, splits, strict=True):
            scipy.io.savemat(path, mat(sample, split), do_compression=True)
    else:
        paths = [folder / f"{name.replace('cifar', 'cifar-')}-binary.tar.gz"]
        tar_gz(paths[0], cifar_members(sample))
    return dataclasses.replace(sample, dataset=dataclasses.replace(sample.dataset, archives=[*map(archive, paths)]))


@pytest.fixture
def cifar10(tmp_path: Path) -> Sample:
    (tmp_path / "archives").mkdir()
    return make("cifar10", tmp_path / "archives")


@pytest.fixture
def mnist(tmp_path: Path) -> Sample:
    (tmp_path / "archives").mkdir()
    return make("mnist", tmp_path / "archives")


@pytest.fixture
def svhn(tmp_path: Path) -> Sample:
    (tmp_path / "archives").mkdir()
    return make("svhn_cropped", tmp_path / "archives")


def check(sample: Sample, data_dir: Path) -> None:
    """Stock TFDS finds every pixel, label and id, in the order of the archive, and its own features."""
    name = sample.dataset.name
    for split, images in sample.images.items():
        source = tfds.data_source(name, split=split, data_dir=data_dir, download=False)
        assert len(source) == len(images)
        for i, (example, image) in enumerate(zip(source, images, strict=True)):
            assert set(example) == FEATURES[name]
            assert example["image"].dtype == np.uint8
            np.testing.assert_array_equal(example["image"], image)
            assert {label: example[label] for label in CLASS_NAMES[name]} == {
                label: values[i] for label, values in sample.labels[split].items()
            }
            if name != "mnist":
                digits = 6 if name == "svhn_cropped" else 5  # as in the stock builders
                assert example["id"] == f"{split}_{i:0{digits}d}".encode()


def refuses(dataset: Dataset, data_dir: Path, folder: Path | None, message: str) -> None:
    """A UserError of one line that matches `message`, and nothing that looks like a dataset."""
    with pytest.raises(UserError, match=message) as caught:
        prepare.prepare(dataset, data_dir, folder)
    assert "\n" not in str(caught.value)
    assert not list(data_dir.glob(f"{dataset.name}/*"))


@pytest.mark.parametrize("name", DATASETS)
def test_prepared_dataset_is_what_stock_tfds_expects(name: str, tmp_path: Path) -> None:
    sample = make(name, tmp_path)
    data_dir = tmp_path / "data"
    prepare.prepare(sample.dataset, data_dir, tmp_path)
    check(sample, data_dir)

    folder = data_dir / name / VERSIONS[name]
    records = {f"{name}-{split}.array_record-00000-of-00001" for split in sample.images}
    names = set() if name in ("mnist", "svhn_cropped") else {f"{label}.labels.txt" for label in CLASS_NAMES[name]}
    assert {p.name for p in folder.iterdir()} == {"dataset_info.json", "features.json"} | records | names
    assert [p.name for p in (data_dir / name).iterdir()] == [VERSIONS[name]]

    untouched, prepared = (tfds.builder(name, data_dir=d) for d in (tmp_path / "empty", data_dir))
    assert prepared.is_prepared()
    assert prepared.info.full_name == untouched.info.full_name == f"{name}/{VERSIONS[name]}"
    assert prepared.info.features.to_json() == untouched.info.features.to_json()
    (tmp_path / "stock").mkdir()
    untouched.info.features.save_config(tmp_path / "stock")
    assert (folder / "features.json").read_text() == (tmp_path / "stock/features.json").read_text()
    assert {label: prepared.info.features[label].names for label in CLASS_NAMES[name]} == CLASS_NAMES[name]
    written = json.loads((folder / "dataset_info.json").read_text())
    stock = json.loads(untouched.info.as_json)
    assert {key: written[key] for key in stock} == stock | {"fileFormat": "array_record"}
    assert set(written) - set(stock) == {"splits", "disableShuffling"}


def test_last_training_images_are_those_of_the_last_batch(cifar10: Sample, tmp_path: Path) -> None:
    prepare.prepare(cifar10.dataset, tmp_path / "data", cifar10.folder)
    last = tfds.data_source("cifar10", split="train[-12:]", data_dir=tmp_path / "data", download=False)
    rows = np.frombuffer(cifar_members(cifar10)["cifar-10-batches-bin/data_batch_5.bin"], np.uint8).reshape(12, 3073)
    for example, row in zip(last, rows, strict=True):
        assert example["label"] == row[0]
        np.testing.assert_array_equal(example["image"].transpose(2, 0, 1).ravel(), row[1:])


def test_a_split_of_any_size_is_kept_in_memory(svhn: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TFDS would sort a large one on disk, and for that it needs TensorFlow, which is not there."""
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 50_000)  # bytes; 60 pictures of noise have 190,000
    prepare.prepare(svhn.dataset, tmp_path / "data", svhn.folder)
    check(svhn, tmp_path / "data")


def test_preparation_is_deterministic_and_leaves_archives_alone(cifar10: Sample, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in cifar10.folder.iterdir()}
    for data_dir in (tmp_path / "a", tmp_path / "b"):
        prepare.prepare(cifar10.dataset, data_dir, cifar10.folder)
    a, b = ({p.name: p.read_bytes() for p in (d / "cifar10/3.0.2").iterdir()} for d in (tmp_path / "a", tmp_path / "b"))
    assert a == b
    assert before == {p: p.read_bytes() for p in cifar10.folder.iterdir()}


def test_second_preparation_does_nothing(
    cifar10: Sample, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare.prepare(cifar10.dataset, tmp_path / "data", cifar10.folder)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "data").rglob("*")}
    capsys.readouterr()
    monkeypatch.delattr(prepare, "archives_of")  # not even the archives are looked at
    prepare.prepare(cifar10.dataset, tmp_path / "data", tmp_path / "not there")
    assert capsys.readouterr().out == f"cifar10 is already prepared in {tmp_path / 'data/cifar10/3.0.2'}\n"
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "data").rglob("*")}


@pytest.mark.parametrize("harm", ["removed", "emptied", "cut", "all removed"])
@pytest.mark.parametrize("name", ["cifar10", "svhn_cropped"])
def test_records_that_are_gone_are_prepared_again(
    name: str, harm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training says to prepare, and preparing does: both count the records of every file."""
    (tmp_path / "archives").mkdir()
    sample, data_dir = make(name, tmp_path / "archives"), tmp_path / "data"
    prepare.prepare(sample.dataset, data_dir, sample.folder)
    entry = name.removesuffix("_cropped")
    check_prepared(entry, str(data_dir))
    records = sorted((data_dir / name).glob("*/*.array_record*"))
    for path in records if harm == "all removed" else records[:1]:
        content = path.read_bytes()
        path.unlink()
        if harm in ("emptied", "cut"):
            path.write_bytes(content[: len(content) // 2] if harm == "cut" else b"")
    with pytest.raises(UserError, match=rf"run `python -m nin_jax\.data\.prepare {name} --data_dir={data_dir}`"):
        check_prepared(entry, str(data_dir))
    before = sorted(p.name for p in data_dir.rglob("*") if p.is_file())
    with pytest.raises(UserError, match="is not a folder"):  # nothing is lost where it cannot be prepared
        prepare.prepare(sample.dataset, data_dir, tmp_path / "none")
    assert sorted(p.name for p in data_dir.rglob("*") if p.is_file()) == before
    capsys.readouterr()
    prepare.prepare(sample.dataset, data_dir, sample.folder)
    said = capsys.readouterr()
    assert "already prepared" not in said.out
    gone = len(records) if harm == "all removed" else 1
    assert f"lacks {gone} files or has parts of them alone, such as {name}-" in said.err
    check_prepared(entry, str(data_dir))
    check(sample, data_dir)


@pytest.mark.parametrize("content", ["nothing", "tfrecord"])
def test_something_else_in_the_place_of_the_dataset(content: str, cifar10: Sample, tmp_path: Path) -> None:
    target = tmp_path / "cifar10" / "3.0.2"
    if content == "nothing":
        target.mkdir(parents=True)
    else:
        prepare.prepare(cifar10.dataset, tmp_path, cifar10.folder)
        info = target / "dataset_info.json"
        info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(UserError, match=re.escape(f"{target} exists but is no ArrayRecord dataset")):
        prepare.prepare(cifar10.dataset, tmp_path, cifar10.folder)


def test_killed_preparation_begins_again(cifar10: Sample, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    script = f"""
import itertools, os, pathlib, signal
from PIL import Image
from nin_jax.data.prepare.archives import Archive, Dataset
from nin_jax.data.prepare.prepare import prepare
fromarray, calls = Image.fromarray, itertools.count()
def killed_in_test_split(array):
    if next(calls) == 70:
        os.kill(os.getpid(), signal.SIGKILL)
    return fromarray(array)
Image.fromarray = killed_in_test_split
prepare({cifar10.dataset!r}, pathlib.Path({str(data_dir)!r}), pathlib.Path({str(cifar10.folder)!r}))
"""
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True).returncode == -9
    (leftover,) = (data_dir / "cifar10").iterdir()
    assert re.fullmatch(r"incomplete\..*_3\.0\.2", leftover.name)
    assert list(leftover.iterdir())
    prepare.prepare(cifar10.dataset, data_dir, cifar10.folder)
    assert [p.name for p in (data_dir / "cifar10").iterdir()] == ["3.0.2"]
    check(cifar10, data_dir)


def test_two_preparations_at_once(cifar10: Sample, tmp_path: Path) -> None:
    (tmp_path / "downloads/cifar10").mkdir(parents=True)
    with (tmp_path / "downloads/cifar10/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refuses(cifar10.dataset, tmp_path, cifar10.folder, "another process is preparing cifar10")


# Archives that are not what they should be.


@pytest.mark.parametrize("position", [0, 0.5, 1])
def test_flipped_bit(position: float, cifar10: Sample, tmp_path: Path) -> None:
    content = bytearray(cifar10.path.read_bytes())
    content[int(position * (len(content) - 1))] ^= 1
    cifar10.path.write_bytes(content)
    found, expected = hashlib.sha256(content).hexdigest(), cifar10.dataset.archives[0].sha256
    message = re.escape(f"{cifar10.path}: SHA-256 is {found}, expected {expected}")
    refuses(cifar10.dataset, tmp_path / "data", cifar10.folder, message)


@pytest.mark.parametrize("name", ["mnist", "svhn_cropped"])
def test_every_archive_is_verified(name: str, tmp_path: Path) -> None:
    (tmp_path / "archives").mkdir()
    sample = make(name, tmp_path / "archives")
    for file in [a.file for a in sample.dataset.archives]:
        path = sample.folder / file
        good = path.read_bytes()
        path.write_bytes(good[:-1])
        refuses(sample.dataset, tmp_path / "data", sample.folder, re.escape(f"{path}: SHA-256 is"))
        path.unlink()
        refuses(sample.dataset, tmp_path / "data", sample.folder, f"lacks {file}")
        path.write_bytes(good)
    prepare.prepare(sample.dataset, tmp_path / "data", sample.folder)
    check(sample, tmp_path / "data")


@pytest.mark.parametrize("remaining", [0, 9, 1000, -1])
def test_truncated_gzip_with_the_right_checksum(remaining: int, cifar10: Sample, tmp_path: Path) -> None:
    cifar10.path.write_bytes(cifar10.path.read_bytes()[:remaining])
    dataset = dataclasses.replace(cifar10.dataset, archives=[archive(cifar10.path)])
    refuses(dataset, tmp_path / "data", cifar10.folder, re.escape(f"{cifar10.path} is damaged"))


@pytest.mark.parametrize("cut_in", ["first header", "first file", "last file"])
def test_truncated_tar_with_the_right_checksum(cut_in: str, cifar10: Sample, tmp_path: Path) -> None:
    tar = gzip.decompress(cifar10.path.read_bytes())
    remaining = {"first header": 100, "first file": 520, "last file": tar.index(b"cifar/readme.html") + 515}[cut_in]
    cifar10.path.write_bytes(gzip.compress(tar[:remaining]))
    dataset = dataclasses.replace(cifar10.dataset, archives=[archive(cifar10.path)])
    refuses(dataset, tmp_path / "data", cifar10.folder, re.escape(f"{cifar10.path} is damaged"))


BATCH = "cifar-10-batches-bin/data_batch_2.bin"


def link(kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(BATCH)
    info.type, info.linkname, info.size = kind, "cifar-10-batches-bin/data_batch_1.bin", 0
    return info


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m | {f"../../{BATCH}": m.pop(BATCH)}, "lacks the file"),
        (lambda m: m | {f"/{BATCH}": m.pop(BATCH)}, "lacks the file"),
        (lambda m: m | {BATCH: link(tarfile.SYMTYPE)}, "lacks the file"),
        (lambda m: m | {BATCH: link(tarfile.LNKTYPE)}, "lacks the file"),
        (lambda m: m | {BATCH: link(tarfile.DIRTYPE)}, "lacks the file"),
        (lambda m: m | {BATCH: m[BATCH] + b"\0"}, "has 36877 bytes, expected 36876"),
        (lambda m: m | {BATCH: m[BATCH][:-1]}, "has 36875 bytes, expected 36876"),
        (lambda m: m | {"cifar-10-batches-bin/batches.meta.txt": b"a\n" * 2049}, "has 4098 bytes, expected 1 to 4096"),
        (lambda m: m | {"bomb": bytes(1 << 25)}, "holds more than the expected"),
    ],
)
def test_wrong_members(
    change: Callable[[dict[str, Any]], dict[str, Any]], message: str, cifar10: Sample, tmp_path: Path
) -> None:
    dataset = with_members(cifar10, change(cifar_members(cifar10)))
    before = set(tmp_path.rglob("*"))
    refuses(dataset, tmp_path / "data", cifar10.folder, f"{re.escape(str(cifar10.path))}.* {message}")
    downloads = {tmp_path / "data" / p for p in ("", "downloads", "downloads/cifar10", "downloads/cifar10/lock")}
    assert set(tmp_path.rglob("*")) == before | downloads


def test_harmless_extra_members_are_ignored(cifar10: Sample, tmp_path: Path) -> None:
    extra: dict[str, bytes | tarfile.TarInfo] = {"../../evil": b"x", "/evil": b"x", "cifar-10-batches-bin/more": b"x"}
    members = {f"./{name}": content for name, content in cifar_members(cifar10).items()}
    dataset = with_members(cifar10, extra | members)
    before = set(tmp_path.rglob("*"))
    prepare.prepare(dataset, tmp_path / "data", cifar10.folder)
    check(cifar10, tmp_path / "data")
    assert all(p.is_relative_to(tmp_path / "data") for p in set(tmp_path.rglob("*")) - before)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda old: old + b"\0", "holds more than the expected 47056 bytes"),
        (lambda old: old + bytes(1 << 25), "holds more than the expected 47056 bytes"),
        (lambda old: old[:-1], "is not an IDX file of shape"),
        (lambda old: old[:7] + b"\x3b" + old[8:], "is not an IDX file of shape"),  # says 59 images
        (lambda old: old[:2] + b"\x09" + old[3:], "is not an IDX file of shape"),  # says int8
    ],
)
def test_wrong_idx(content: Callable[[bytes], bytes], message: str, mnist: Sample, tmp_path: Path) -> None:
    path = mnist.folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(content(gzip.decompress(path.read_bytes()))))
    dataset = dataclasses.replace(
        mnist.dataset, archives=[archive(mnist.folder / a.file) for a in mnist.dataset.archives]
    )
    refuses(dataset, tmp_path / "data", mnist.folder, f"{re.escape(str(path))} {message}")


def with_mat(svhn: Sample, content: bytes) -> Dataset:
    """The dataset with `content` as the file of `extra`, whose checksum is right."""
    path = svhn.folder / "extra_32x32.mat"
    path.write_bytes(content)
    archives = [archive(svhn.folder / a.file) for a in svhn.dataset.archives]
    return dataclasses.replace(svhn.dataset, archives=archives)


def saved(variables: dict[str, Any], **arguments: Any) -> bytes:
    file = io.BytesIO()
    scipy.io.savemat(file, variables, **{"do_compression": True, **arguments})
    return file.getvalue()


Y = np.arange(30)[:, None]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: {"X": v["X"]}, r"y has the shape None, expected \(30, 1\)"),
        (lambda v: {"y": v["y"]}, r"X has the shape None, expected \(32, 32, 3, 30\)"),
        (lambda v: v | {"X": v["X"][..., 1:]}, r"X has the shape \(32, 32, 3, 29\), expected"),
        (lambda v: v | {"X": v["X"].transpose(3, 0, 1, 2)}, r"X has the shape \(30, 32, 32, 3\), expected"),
        (lambda v: v | {"y": v["y"].T}, r"y has the shape \(1, 30\), expected"),
        (lambda v: v | {"X": v["X"].astype(np.int16)}, "X is no uint8 array"),
        (lambda v: v | {"X": v["X"] / 255}, "X is no uint8 array"),
        (lambda v: v | {"y": v["y"] + 0.5}, "y is no uint8 array"),
        (lambda v: v | {"y": np.array([["a"]] * 30)}, "y is no uint8 array"),
        (lambda v: v | {"y": np.array([["a"]] * 30, object)}, "y is no uint8 array"),
        (lambda v: v | {"y": scipy.sparse.csc_array(v["y"].astype(float))}, "y is no uint8 array"),
        (lambda v: v | {"y": np.where(Y == 7, 0, v["y"]).astype(np.uint8)}, "y holds the label 0, expected 1 to 10"),
        (lambda v: v | {"y": np.where(Y == 7, 11, v["y"]).astype(np.uint8)}, "y holds the label 11, expected 1 to 10"),
    ],
)
@pytest.mark.filterwarnings("ignore:The default value for `spmatrix`")  # SciPy 1.18 says so of any sparse matrix
def test_wrong_variables(
    change: Callable[[dict[str, Any]], dict[str, Any]], message: str, svhn: Sample, tmp_path: Path
) -> None:
    """Of the last file: what was written of the others is gone too."""
    dataset = with_mat(svhn, saved(change(mat(svhn, "extra"))))
    refuses(dataset, tmp_path / "data", svhn.folder, f"^{re.escape(str(svhn.folder))}/extra_32x32.mat: {message}")


@pytest.mark.parametrize(
    "content",
    [
        lambda old: b"",
        lambda old: old[:100],
        lambda old: old[:1000],
        lambda old: old[:-1],
        lambda old: b"no MATLAB file at all" * 100,
        lambda old: pickle.dumps(old),
        lambda old: old[:124] + b"\0\2IM" + old[128:],  # says 7.3, which is HDF5
        lambda old: old[:140] + bytes(20) + old[160:],
        lambda old: old[:-40] + bytes([old[-40] ^ 1]) + old[-39:],
        lambda old: old[:128] + struct.pack("<II", 15, 2**31) + old[136:],
    ],
)
def test_damaged_mat_with_the_right_checksum(content: Callable[[bytes], bytes], svhn: Sample, tmp_path: Path) -> None:
    dataset = with_mat(svhn, content(saved(mat(svhn, "extra"))))
    refuses(
        dataset, tmp_path / "data", svhn.folder, f"^{re.escape(str(svhn.folder))}/extra_32x32.mat(: .| is damaged: .)"
    )


def test_mat_files_of_other_writers(svhn: Sample, tmp_path: Path) -> None:
    """The other order of variables, no compression, and variables that are nobody's business."""
    variables = mat(svhn, "extra")
    more = {"note": "x" * 1000, "y": variables["y"], "cells": np.array([[1], ["a"]], object), "X": variables["X"]}
    prepare.prepare(with_mat(svhn, saved(more, do_compression=False)), tmp_path / "data", svhn.folder)
    check(svhn, tmp_path / "data")


# Downloads, from a real server that may cut connections.


@dataclasses.dataclass
class Server:
    """Serves `folder`; of each answer only as many bytes as the next of `cuts` says, then the connection is cut."""

    folder: Path
    url: str = ""
    cuts: list[int] = dataclasses.field(default_factory=list)
    knows_ranges: bool = True
    requests: list[tuple[str, str]] = dataclasses.field(default_factory=list)  # (file, Range)

    def dataset(self, sample: Sample) -> Dataset:
        return dataclasses.replace(
            sample.dataset, archives=[archive(sample.folder / a.file, self.url) for a in sample.dataset.archives]
        )


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server(tmp_path / "archives")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            file, wanted = self.path.lstrip("/"), self.headers["Range"]
            state.requests.append((file, wanted))
            content = (state.folder / file).read_bytes()
            first = int(wanted.removeprefix("bytes=").removesuffix("-")) if state.knows_ranges else 0
            self.send_response(206 if state.knows_ranges else 200)
            self.send_header("Content-Length", str(len(content) - first))
            self.end_headers()
            self.wfile.write(content[first:][: state.cuts.pop(0) if state.cuts else None])

        def log_message(self, *args: object) -> None:
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(storage, "RETRY_AFTER", (0.0, 0.0))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        state.url = f"http://127.0.0.1:{running.server_port}/"
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield state
        running.shutdown()
        thread.join()


def test_download_goes_on_after_a_cut(cifar10: Sample, server: Server, tmp_path: Path) -> None:
    server.cuts = [100_000, 50_000]
    file = cifar10.path.name
    prepare.prepare(server.dataset(cifar10), tmp_path / "data")
    assert server.requests == [(file, "bytes=0-"), (file, "bytes=100000-"), (file, "bytes=150000-")]
    check(cifar10, tmp_path / "data")
    downloads = tmp_path / "data/downloads/cifar10"
    assert {p.name for p in downloads.iterdir()} == {file, "lock"}
    assert (downloads / file).read_bytes() == cifar10.path.read_bytes()


def test_later_call_goes_on_and_downloads_are_kept(mnist: Sample, server: Server, tmp_path: Path) -> None:
    first, second, *rest = (a.file for a in mnist.dataset.archives)
    dataset = server.dataset(mnist)
    server.cuts = [10**6, 20, 0, 0]  # the first file, then three attempts at the second
    downloads, data_dir = tmp_path / "data/downloads/mnist", tmp_path / "data"
    missing = " ".join(server.url + file for file in (second, *rest))
    message = (
        f"cannot download {server.url}{second} (the connection ended after 20 of {dataset.archives[1].size} bytes): "
        f"fetch {missing} into {downloads} by other means, then run: "
        f"python -m nin_jax.data.prepare mnist --archives={downloads} --data_dir={data_dir}"
    )
    refuses(dataset, data_dir, None, f"^{re.escape(message)}$")
    assert server.requests == [(first, "bytes=0-"), (second, "bytes=0-"), *[(second, "bytes=20-")] * 2]
    assert {p.name for p in downloads.iterdir()} == {first, f"{second}.part", "lock"}

    server.requests.clear()
    prepare.prepare(dataset, data_dir)
    assert server.requests == [(second, "bytes=20-"), *((file, "bytes=0-") for file in rest)]
    check(mnist, data_dir)


def test_server_without_ranges_begins_again(cifar10: Sample, server: Server, tmp_path: Path) -> None:
    server.cuts, server.knows_ranges = [100_000], False
    prepare.prepare(server.dataset(cifar10), tmp_path / "data")
    assert [wanted for _, wanted in server.requests] == ["bytes=0-", "bytes=100000-"]
    check(cifar10, tmp_path / "data")


@pytest.mark.parametrize("change", ["other byte", "longer"])
def test_download_of_something_else(change: str, cifar10: Sample, server: Server, tmp_path: Path) -> None:
    dataset = server.dataset(cifar10)
    content = cifar10.path.read_bytes()
    other = bytes([content[0] ^ 1]) + content[1:]
    cifar10.path.write_bytes(other + bytes(10**7) if change == "longer" else other)
    part = tmp_path / "data/downloads/cifar10" / f"{cifar10.path.name}.part"
    digest = hashlib.sha256(other).hexdigest()  # of no more than the expected size
    refuses(dataset, tmp_path / "data", None, re.escape(f"{part}: SHA-256 is {digest}, expected"))
    assert [p.name for p in part.parent.iterdir()] == ["lock"]
    cifar10.path.write_bytes(content)
    prepare.prepare(dataset, tmp_path / "data")
    check(cifar10, tmp_path / "data")


def test_damaged_earlier_download_is_named(cifar10: Sample, server: Server, tmp_path: Path) -> None:
    kept = tmp_path / "data/downloads/cifar10" / cifar10.path.name
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"no archive")
    refuses(server.dataset(cifar10), tmp_path / "data", None, f"{re.escape(str(kept))}: SHA-256 is .* replace it with")
    assert not server.requests


@pytest.mark.parametrize("name", DATASETS)
def test_official_archives(name: str) -> None:
    expected = {
        "train-images-idx3-ubyte.gz": (9912422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
        "train-labels-idx1-ubyte.gz": (28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
        "t10k-images-idx3-ubyte.gz": (1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
        "t10k-labels-idx1-ubyte.gz": (4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
        "cifar-10-binary.tar.gz": (170052171, "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),
        "cifar-100-binary.tar.gz": (168513733, "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"),
        "train_32x32.mat": (182040794, "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8"),
        "test_32x32.mat": (64275384, "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b"),
        "extra_32x32.mat": (1329278602, "a133a4beb38a00fcdda90c9489e0c04f900b660ce8a316a5e854838379a71eb3"),
    }
    places = {"mnist": slice(4), "cifar10": slice(4, 5), "cifar100": slice(5, 6), "svhn_cropped": slice(6, 9)}
    files = list(expected)[places[name]]
    dataset = official(name)
    assert {a.file: (a.size, a.sha256) for a in dataset.archives} == {file: expected[file] for file in files}
    registered = tfds.builder_cls(name).url_infos
    assert {a.url: a.sha256 for a in dataset.archives} == {url: info.checksum for url, info in registered.items()}
    # Stanford's server has no https: the checksum is what is trusted.
    scheme = "http" if name == "svhn_cropped" else "https"
    assert all(a.url.startswith(f"{scheme}://") for a in dataset.archives)
    counts = {split: sum(files.values()) for split, files in dataset.splits.items()}
    assert counts == registry.find("datasets", name.removesuffix("_cropped")).INFO.splits


# The command line.


def command(*arguments: str, code: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    start = ["-c", code] if code else ["-m", "nin_jax.data.prepare"]
    return subprocess.run(
        [sys.executable, *start, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def ends(process: subprocess.CompletedProcess[str], exit_code: int, message: str) -> None:
    assert process.returncode == exit_code, process.stderr
    assert re.fullmatch(f"nin_jax: {message}\n", process.stderr), process.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["cifar"],
            r"unknown dataset 'cifar': did you mean 'cifar10'\? \(valid: cifar10, cifar100, imagenet2012, mnist, svhn_cropped\)",
        ),
        (["svhn"], r"unknown dataset 'svhn': did you mean 'svhn_cropped'\? \(valid: .*\)"),
        ([], r"one dataset to prepare is expected \(valid: cifar10, cifar100, imagenet2012, mnist, svhn_cropped\)"),
        (
            ["mnist", "cifar10"],
            r"one dataset to prepare is expected \(valid: cifar10, cifar100, imagenet2012, mnist, svhn_cropped\)",
        ),
        (["mnist", "--archive=x"], r"Unknown command line flag 'archive'\. Did you mean: archives \?"),
        (["mnist", "--archives"], r"Missing value for flag --archives"),
        (["mnist", "--archives=TMP/none"], r"--archives=TMP/none is not a folder"),
        (["mnist", "--archives="], r"--archives=\. lacks t10k-images-idx3-ubyte\.gz \(official: https://\S+\)"),
        (["cifar10", "--archives=TMP/some"], r"TMP/some/cifar-10-binary\.tar\.gz: SHA-256 is \w{64}, expected c4a3.*"),
        (["cifar100", "--archives=TMP/some"], r"--archives=TMP/some lacks cifar-100-binary\.tar\.gz \(official: .*"),
        (["svhn_cropped", "--archives=TMP/some"], r"TMP/some/extra_32x32\.mat: SHA-256 is \w{64}, expected a133.*"),
        (["mnist", "--data_dir=gs://bucket/x"], r"--data_dir=gs://bucket/x: gs:// is not supported; name a local .*"),
        (["mnist", "--data_dir=TMP/file/x"], r"--data_dir=TMP/file/x is not writable: .*"),
    ],
)
def test_mistakes_on_the_command_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "some").mkdir()
    for file in ("cifar-10-binary.tar.gz", "extra_32x32.mat"):
        (tmp_path / "some" / file).write_bytes(b"no archive")
    (tmp_path / "file").touch()
    process = command(*(a.replace("TMP", str(tmp_path)) for a in arguments), TFDS_DATA_DIR=str(tmp_path / "data"))
    ends(process, 2, message.replace("TMP", re.escape(str(tmp_path))))
    assert not list((tmp_path / "data").glob("*/3*"))


def test_download_impossible_on_the_command_line(tmp_path: Path) -> None:
    code = "from nin_jax import storage; storage.RETRY_AFTER = (); from nin_jax.data.prepare.__main__ import run; run()"
    process = command("cifar10", f"--data_dir={tmp_path / 'a b'}", code=code, https_proxy="http://127.0.0.1:1")
    url, downloads = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", f"{tmp_path}/a b/downloads/cifar10"
    again = f"python -m nin_jax.data.prepare cifar10 '--archives={downloads}' '--data_dir={tmp_path}/a b'"
    ends(
        process,
        2,
        rf"cannot download {url} \(.*refused.*\): "
        + re.escape(f"fetch {url} into {downloads} by other means, then run: {again}"),
    )


@pytest.mark.parametrize(
    ("raised", "exit_code", "message"),
    [
        ("KeyboardInterrupt", 75, "interrupted: .*"),
        ("OSError(28, 'No space left')", 74, "cannot prepare .*No space left"),
        ("MemoryError('1.6 GB')", 2, r"not enough memory to prepare mnist: 1\.6 GB"),
    ],
)
def test_other_endings(raised: str, exit_code: int, message: str, tmp_path: Path) -> None:
    code = f"""
from nin_jax.data.prepare import __main__, prepare
def fail(*_): raise {raised}
prepare.archives_of = fail
__main__.run()
"""
    ends(command("mnist", f"--data_dir={tmp_path}", code=code), exit_code, message)


def test_already_prepared_on_the_command_line(cifar10: Sample, tmp_path: Path) -> None:
    prepare.prepare(cifar10.dataset, tmp_path / "data", cifar10.folder)
    process = command("cifar10", TFDS_DATA_DIR=str(tmp_path / "data"))  # TFDS's own rule for the default
    ends_well = f"cifar10 is already prepared in {tmp_path / 'data/cifar10/3.0.2'}\n"
    assert (process.returncode, process.stdout, process.stderr) == (0, ends_well, "")
