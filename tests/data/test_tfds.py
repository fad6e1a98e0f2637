"""Split expressions, the cache of decoded data sets, and reading what `nin_jax.data.prepare` writes."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import io
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import example, given, settings

from nin_jax.data.cache import cache_dir, cached
from nin_jax.data.datasets import mnist
from nin_jax.data.prepare import archives as archives_of
from nin_jax.data.prepare import prepare
from nin_jax.data.splits import Split, take
from nin_jax.data.tfds import check_prepared
from nin_jax.errors import StorageFailed, UserError

ROOT = Path(__file__).parents[2]
SIZES = {"train": 37, "test": 10}


def whole(name: str) -> Split:
    """Example i of a split has the label i, and test labels go on from 100."""
    labels = np.arange(SIZES[name], dtype=np.int32) + (100 if name == "test" else 0)
    return labels.astype(np.uint8).reshape(-1, 1, 1, 1), labels


def labels_of(split: str) -> list[int]:
    images, labels = take(split, SIZES, whole, "numbers")
    np.testing.assert_array_equal(images.ravel(), labels)
    return labels.tolist()


ENDS = st.none() | st.integers(-40, 40)


@given(st.lists(st.tuples(st.sampled_from(["train", "test"]), ENDS, ENDS), min_size=1, max_size=3))
@example([("train", None, None)])
@example([("test", -3, None), ("train", None, 2)])
def test_slices_are_those_of_python(parts: list[tuple[str, int | None, int | None]]) -> None:
    """Parts are joined in order; one that goes beyond the end is a mistake, and so is nothing at all."""
    slices = [f"[{'' if a is None else a}:{'' if b is None else b}]".replace("[:]", "") for _, a, b in parts]
    text = "+".join(name + ends for (name, _, _), ends in zip(parts, slices, strict=True))
    wanted = [label for name, a, b in parts for label in whole(name)[1].tolist()[a:b]]
    beyond = any(abs(end or 0) > SIZES[name] for name, a, b in parts for end in (a, b))
    if beyond or not wanted:
        with pytest.raises(UserError, match="of numbers"):
            labels_of(text)
    else:
        assert labels_of(text) == wanted


@given(st.integers(1, 99), st.sampled_from(["train", "test"]))
def test_percents(percent: int, name: str) -> None:
    """The two sides of a boundary are the whole split, and the boundary is the nearest example."""
    sides = []
    for text in (f"{name}[:{percent}%]", f"{name}[{percent}%:]"):
        try:
            sides.append(labels_of(text))
        except UserError:  # this side is empty
            sides.append([])
    assert sides[0] + sides[1] == whole(name)[1].tolist()
    assert abs(len(sides[0]) - percent * SIZES[name] / 100) <= 0.5


def test_whole_splits_are_joined() -> None:
    assert labels_of("train+test") == [*range(37), *range(100, 110)]
    assert labels_of("test[-20%:]") == [108, 109]
    assert labels_of("test[1:-1]") == list(range(101, 109))


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ("", "dataset numbers has no split ''"),
        ("tran", "dataset numbers has no split 'tran': did you mean 'train'? (valid: test, train)"),
        ("train+tets", "no split 'tets': did you mean 'test'?"),
        ("train[", "split 'train[' of numbers (examples: 37 in train, 10 in test)"),
        ("train[:38]", "split 'train[:38]' of numbers (examples: 37 in train, 10 in test)"),
        ("train[:101%]", "split 'train[:101%]' of numbers"),
        ("train[::2]", "split 'train[::2]' of numbers"),
        ("train[3:3]", "split 'train[3:3]' of numbers"),
        ("test[:1%]", "split 'test[:1%]' of numbers is empty"),
    ],
)
def test_mistakes_in_a_split(split: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        labels_of(split)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(max_examples=200)
@given(st.text(max_size=20) | st.text("train[:1%]+-e ", max_size=16).map("train".__add__))
def test_any_text_is_a_split_or_a_mistake(split: str) -> None:
    with contextlib.suppress(UserError):
        assert labels_of(split)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return tmp_path / "xdg/nin_jax"


IMAGES = np.random.default_rng(0).integers(0, 256, (5, 4, 3, 2), np.uint8)
LABELS = np.arange(5, dtype=np.int32)


def check(split: Split) -> None:
    np.testing.assert_array_equal(split[0], IMAGES, strict=True)
    np.testing.assert_array_equal(split[1], LABELS, strict=True)


def never() -> Split:
    raise AssertionError("made again")


def test_made_once_for_the_same_facts(cache: Path) -> None:
    check(cached("name", ["a", 1], lambda: (IMAGES, LABELS)))
    again = cached("name", ["a", 1], never)
    check(again)
    assert isinstance(again[0], np.memmap)
    for name, facts in (("name", ["a", 2]), ("other", ["a", 1])):
        with pytest.raises(AssertionError, match="made again"):
            cached(name, facts, never)
    assert [entry.name.rpartition("-")[0] for entry in cache.iterdir()] == ["name"]


def foreign(path: Path) -> None:
    np.save(path, np.zeros((5, 4, 3, 2), np.uint8) if path.stem == "images" else np.zeros(5, np.int32))


def other_dtype(path: Path) -> None:
    """The same bytes under another name."""
    array = np.load(path)
    np.save(path, array.view(np.int8 if path.stem == "images" else np.uint32))


def flip_last_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "emptied": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "header truncated": lambda path: path.write_bytes(path.read_bytes()[:50]),
    "bit flipped": flip_last_bit,
    "foreign": foreign,
    "other dtype": other_dtype,
    "a pickle": lambda path: np.save(path, np.array([{}], object)),
    "a zip": lambda path: np.savez(path.with_suffix(""), IMAGES) or path.with_suffix(".npz").rename(path),
    "text": lambda path: path.write_text("hello"),
    "removed": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("part", ["images.npy", "labels.npy"])
@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_entry_is_made_again(how: str, part: str, cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It is said in one line, and the entry is whole afterwards."""
    cached("name", [], lambda: (IMAGES, LABELS))
    (entry,) = cache.iterdir()
    DAMAGE[how](entry / part)
    check(cached("name", [], lambda: (IMAGES, LABELS)))
    said = capfd.readouterr().err
    assert said.startswith(f"cached data set {entry} is broken (")
    assert said.count("\n") == 1
    check(cached("name", [], never))


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", '{"images": 1, "labels": 2}'])
def test_damaged_checksums_are_noticed(text: str, cache: Path) -> None:
    cached("name", [], lambda: (IMAGES, LABELS))
    (checksums,) = cache.glob("*/checksums.json")
    checksums.write_text(text)
    with pytest.raises(AssertionError, match="made again"):
        cached("name", [], never)


def test_every_flipped_bit_of_a_header_is_noticed_or_harmless(cache: Path) -> None:
    cached("name", [], lambda: (IMAGES, LABELS))
    (path,) = cache.glob("*/images.npy")
    content = path.read_bytes()
    made = []

    def again() -> Split:
        made.append(1)
        return IMAGES, LABELS

    for i in range(128 * 8):
        damaged = bytearray(content)
        damaged[i // 8] ^= 1 << i % 8
        path.write_bytes(damaged)
        check(cached("name", [], again))
    assert len(made) > 900


def test_a_file_in_the_place_of_an_entry_does_no_harm(cache: Path) -> None:
    cached("name", [], lambda: (IMAGES, LABELS))
    (entry,) = cache.iterdir()
    shutil.rmtree(entry)
    entry.write_text("mine")
    check(cached("name", [], lambda: (IMAGES, LABELS)))


def test_a_cache_that_cannot_be_written_is_named(cache: Path) -> None:
    cache.parent.write_text("a file")
    with pytest.raises(StorageFailed, match=r"cannot cache .* \(XDG_CACHE_HOME\)"):
        cached("name", [], lambda: (IMAGES, LABELS))


def python(code: str, env: dict[str, str]) -> subprocess.Popen[str]:
    head = "import sys, time, pathlib, numpy as np\nfrom nin_jax.data.cache import cached\n"
    env = env | {"PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", head + code], env=env, stdin=pipe, stdout=pipe, text=True)


@pytest.mark.parametrize("file", ["images", "labels"])
def test_a_kill_while_writing_leaves_nothing_that_is_read(file: str, cache: Path, clean_env: dict[str, str]) -> None:
    code = f"""
save = np.save
def slow(path, array, **options):
    if path.stem == {file!r}:
        path.write_bytes(b"half a file")
        print("writing", flush=True)
        sys.stdin.read()
    save(path, array, **options)
np.save = slow
cached("name", [], lambda: (np.zeros((5, 4, 3, 2), np.uint8), np.zeros(5, np.int32)))
"""
    with python(code, clean_env | {"XDG_CACHE_HOME": str(cache.parent)}) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        writer.kill()
    assert list(cache.iterdir())
    check(cached("name", [], lambda: (IMAGES, LABELS)))
    check(cached("name", [], never))


@pytest.mark.parametrize("broken", [False, True])
def test_two_processes_at_the_same_time(broken: bool, cache: Path, clean_env: dict[str, str]) -> None:
    """Both make the entry, both go on with it, and it is whole; also when both found a broken one."""
    if broken:
        cached("name", [], lambda: (IMAGES, LABELS))
        next(cache.glob("*/labels.npy")).write_bytes(b"")
    code = f"""
def make():
    pathlib.Path({str(cache.parent)!r}, sys.argv[0] + str(time.time_ns())).touch()
    while len(list(pathlib.Path({str(cache.parent)!r}).glob("-c*"))) < 2:
        time.sleep(0.001)
    return np.full((500, 40, 30, 2), 7, np.uint8), np.arange(500, dtype=np.int32)
images, labels = cached("name", [], make)
assert (images == 7).all() and labels.sum() == 124750
"""
    cache.parent.mkdir(exist_ok=True)
    both = [python(code, clean_env | {"XDG_CACHE_HOME": str(cache.parent)}) for _ in range(2)]
    assert [process.wait(600) for process in both] == [0, 0]
    for process in both:
        process.communicate()
    assert cached("name", [], never)[0].shape == (500, 40, 30, 2)
    assert len(list(cache.iterdir())) == 1


COUNTS = {"train": 60, "test": 20}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Split]]:
    """A small MNIST in TFDS's layout, and what is in it."""
    root, rng = tmp_path_factory.mktemp("mnist"), np.random.default_rng(0)
    splits, paths = {}, []
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = rng.integers(0, 256, (COUNTS[split], 28, 28, 1), np.uint8)
        splits[split] = images, rng.integers(0, 10, COUNTS[split]).astype(np.int32)
        for kind, data in (("images-idx3", images[..., 0]), ("labels-idx1", splits[split][1].astype(np.uint8))):
            paths.append(root / f"{prefix}-{kind}-ubyte.gz")
            header = struct.pack(f">{1 + data.ndim}I", 0x0800 + data.ndim, *data.shape)
            paths[-1].write_bytes(gzip.compress(header + data.tobytes()))
    archives = [
        archives_of.Archive(path.name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in paths
    ]
    sizes = {"train": {"train": COUNTS["train"]}, "test": {"t10k": COUNTS["test"]}}
    dataset = dataclasses.replace(archives_of.DATASETS["mnist"], splits=sizes, archives=archives)
    prepare.prepare(dataset, root / "data", root)
    return root / "data", splits


def test_a_prepared_data_set(
    prepared: tuple[Path, dict[str, Split]], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every pixel and label in order; its own sizes rule, not the official ones; the second start decodes no record."""
    data_dir, splits = prepared
    for split, (images, labels) in splits.items():
        got = mnist.load(split, str(data_dir))
        np.testing.assert_array_equal(got[0], images, strict=True)
        np.testing.assert_array_equal(got[1], labels, strict=True)
    np.testing.assert_array_equal(mnist.load("train[-25%:]+test[:3]", str(data_dir))[1],
                                  np.concatenate([splits["train"][1][45:], splits["test"][1][:3]]))  # fmt: skip
    with pytest.raises(UserError, match=r"examples: 60 in train, 20 in test|examples: 20 in test, 60 in train"):
        mnist.load("train[:61]", str(data_dir))

    for name in ("data_source", "builder", "load"):
        monkeypatch.setattr(tfds, name, lambda *_, **__: pytest.fail("opened again"))
    monkeypatch.setattr("nin_jax.data.tfds.decode_all", lambda *_: pytest.fail("decoded again"))
    np.testing.assert_array_equal(mnist.load("train", str(data_dir))[0], splits["train"][0])
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    np.testing.assert_array_equal(mnist.load("train", None)[0], splits["train"][0])
    (record,) = data_dir.glob("mnist/*/*train*")
    os.utime(record, ns=(1, 1))
    with pytest.raises(pytest.fail.Exception, match="opened again"):
        mnist.load("train", str(data_dir))


@pytest.fixture
def copy(prepared: tuple[Path, dict[str, Split]], tmp_path: Path, cache: Path) -> Path:
    """A copy of the prepared data set, to be damaged."""
    shutil.copytree(prepared[0] / "mnist", tmp_path / "data/mnist")
    return tmp_path / "data/mnist/3.0.1"


@pytest.mark.parametrize("name", ["a[1]", "b\\c\\", "*?{x,y} \n%41", "gs:", "[!a]"])
def test_no_character_of_a_path_changes_what_is_read(
    name: str, prepared: tuple[Path, dict[str, Split]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a data directory and of the cache: decoded, and read again from the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache" / name))
    shutil.copytree(prepared[0] / "mnist", tmp_path / name / "mnist")
    for _ in range(2):
        for read, wanted in zip(mnist.load("test", str(tmp_path / name)), prepared[1]["test"], strict=True):
            np.testing.assert_array_equal(read, wanted)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert any((tmp_path / "cache" / name / "nin_jax").iterdir())


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_record_file_is_a_mistake(keep: float, copy: Path) -> None:
    """In one line that names the file and what to run, and nothing is cached."""
    (record,) = copy.glob("*train*")
    content = record.read_bytes()
    record.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(UserError) as caught:
        mnist.load("train", str(copy.parents[1]))
    root = copy.parents[1]
    assert str(caught.value) == (
        f"dataset mnist 3.0.1 is not prepared in {root}: run `python -m nin_jax.data.prepare mnist --data_dir={root}`, or "
        "set --config.data_dir to where it is"
    )
    with pytest.raises(UserError, match=f"lacks {record.name} or has a part of it alone in"):
        check_prepared("mnist", str(root))
    assert "\n" not in str(caught.value)
    assert len(mnist.load("test", str(copy.parents[1]))[1]) == 20
    assert len(list(cache_dir().iterdir())) == 1


def test_a_flipped_bit_in_a_record_file_is_noticed_or_harmless(
    prepared: tuple[Path, dict[str, Split]], copy: Path
) -> None:
    """Wherever it is: either the file is refused, or every pixel and label is right (there is padding too)."""
    (record,) = copy.glob("*train*")
    content = record.read_bytes()
    noticed = 0
    for where in range(0, len(content), len(content) // 20):
        damaged = bytearray(content)
        damaged[where] ^= 8
        record.write_bytes(damaged)
        os.utime(record, ns=(where, where))
        try:
            images, labels = mnist.load("train", str(copy.parents[1]))
        except UserError:
            noticed += 1
        else:
            np.testing.assert_array_equal(images, prepared[1]["train"][0])
            np.testing.assert_array_equal(labels, prepared[1]["train"][1])
    assert noticed > 5


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"splits": [{}]}', '{"splits": [{"name": "a", "shardLengths": ["x"]}]}']
)
def test_an_unreadable_dataset_info_is_a_mistake(text: str, copy: Path) -> None:
    (copy / "dataset_info.json").write_text(text)
    with pytest.raises(UserError, match=r"dataset_info\.json cannot be read"):
        mnist.load("train", str(copy.parents[1]))


def test_a_data_set_that_is_not_there_says_what_to_run(tmp_path: Path, copy: Path) -> None:
    with pytest.raises(UserError, match=r"run `python -m nin_jax\.data\.prepare mnist --data_dir=.*/nowhere`, or set"):
        mnist.load("train", str(tmp_path / "nowhere"))
    next(copy.glob("*train*")).unlink()
    with pytest.raises(UserError, match="is not prepared in"):
        mnist.load("train", str(copy.parents[1]))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_a_picture_without_loss_comes_back_pixel_for_pixel(kind):
    """The two formats that prepared data sets hold."""
    from PIL import Image

    from nin_jax.data.pictures import open_picture

    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, kind, lossless=True)
    np.testing.assert_array_equal(np.asarray(open_picture(encoded.getvalue())), pixels)


def test_a_remote_folder_is_refused(monkeypatch):
    """Not taken for the local folder "gs:"."""
    monkeypatch.setenv("TFDS_DATA_DIR", "gs://bucket/tfds")
    with pytest.raises(
        UserError, match="TFDS_DATA_DIR=gs://bucket/tfds: gs:// is not supported; name a local directory"
    ):
        mnist.load("train")
