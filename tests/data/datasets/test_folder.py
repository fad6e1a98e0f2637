"""A folder of pictures: layouts, kinds of files, the held-out fifth, the cache, and the mistakes."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from PIL import Image
from PIL.ImageFile import ImageFile

from nin_jax.data.class_folders import find, hold_out
from nin_jax.data.datasets import folder
from nin_jax.data.datasets.folder import info, load
from nin_jax.errors import UserError

ROOT = Path(__file__).parents[3]


def picture(path: Path, value: int = 128, size: tuple[int, int] = (12, 12)) -> Path:
    """Saves a picture of one grey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value,) * 3).save(path)
    return path


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Ten cats of grey 10, 11, ... and five dogs of grey 200, 201, ..."""
    for i in range(10):
        picture(tmp_path / f"pets/cat/{i}.png", 10 + i)
    for i in range(5):
        picture(tmp_path / f"pets/dog/{i}.PNG", 200 + i)
    return tmp_path / "pets"


def greys(split: str, root: Path, **arguments: int) -> list[tuple[int, int]]:
    """(grey, label) of each example, sorted."""
    images, labels = load(split, str(root), **arguments)
    assert np.ptp(images.reshape(len(images), -1), axis=1).max() == 0
    return sorted(zip(images[:, 0, 0, 0].tolist(), labels.tolist(), strict=True))


def mistake(root: Path | str | None, split: str = "train", **arguments: int) -> str:
    with pytest.raises(UserError) as caught:
        load(split, None if root is None else str(root), **arguments)
    return str(caught.value)


def test_class_folders(pets: Path) -> None:
    """Both splits together are every picture once, with the number of its folder; a fifth of each class is held out."""
    facts = info(str(pets), size=16, channels=3)
    assert (facts.classes, facts.image_shape, facts.splits) == (2, (16, 16, 3), {"train": 12, "test": 3})
    everything = [(10 + i, 0) for i in range(10)] + [(200 + i, 1) for i in range(5)]
    assert greys("train+test", pets, size=16) == everything
    assert [label for _, label in greys("test", pets, size=16)] == [0, 0, 1]
    images, labels = load("train", str(pets), size=16, channels=1)
    assert (images.shape, images.dtype, labels.dtype) == ((12, 16, 16, 1), np.uint8, np.int32)


def test_split_folders(tmp_path: Path) -> None:
    """PATH/train and PATH/test are the splits as they are; a class that one of them lacks is named."""
    for split, value in (("train", 10), ("test", 20)):
        for kind in ("a", "b"):
            picture(tmp_path / split / kind / "x.png", value)
    assert info(str(tmp_path)).splits == {"train": 2, "test": 2}
    assert greys("train", tmp_path) == [(10, 0), (10, 1)]
    assert greys("test", tmp_path) == [(20, 0), (20, 1)]
    picture(tmp_path / "test/c/x.png")
    assert "the split 'test' has classes that are not in train: c" in mistake(tmp_path)


def test_without_a_test_folder_there_is_no_test_split(tmp_path: Path) -> None:
    for kind in ("a", "b"):
        picture(tmp_path / "train" / kind / "x.png")
    assert "has no split 'test': (valid: train)" in mistake(tmp_path, "test")


def test_nested_pictures_count_and_hidden_ones_do_not(pets: Path) -> None:
    picture(pets / "dog/puppies/2024/x.jpeg", 250)
    for hidden in (".thumbnails/cat/1.png", "cat/.thumbnails/1.png", "cat/._1.png", "dog/puppies/.old/x.png"):
        picture(pets / hidden, 0)
    (pets / "readme.txt").write_text("mine")
    (pets / "cat/notes.txt").write_text("mine")
    assert info(str(pets)).splits == {"train": 13, "test": 3}
    assert {grey for grey, _ in greys("train+test", pets)} == {*range(10, 20), *range(200, 205), 250}


@given(
    st.dictionaries(st.sampled_from("abc"), st.sets(st.text("xyz0", min_size=1, max_size=4), min_size=1), min_size=1)
)
def test_the_held_out_fifth(classes: dict[str, set[str]]) -> None:
    """Each class has a fifth of its pictures in the test split, at least one of two or more; order does not matter."""
    entries = [(Path("/root") / kind / n, k) for k, kind in enumerate(sorted(classes)) for n in sorted(classes[kind])]
    files = hold_out(entries, Path("/root"))
    assert sorted(files["train"] + files["test"]) == sorted(entries)
    for k, kind in enumerate(sorted(classes)):
        n = len(classes[kind])
        assert sum(label == k for _, label in files["test"]) == (n // 5 or int(n > 1))
    assert hold_out(entries[::-1], Path("/root")) == files


def test_the_held_out_fifth_depends_on_names_alone(pets: Path, tmp_path: Path) -> None:
    """Neither on what the pictures show, nor on where the folder lies. The names are pinned."""
    for file in pets.rglob("*.*"):
        picture(tmp_path / "elsewhere" / file.relative_to(pets), 77)
    for root in (pets, tmp_path / "elsewhere"):
        assert sorted(f"{f.parent.name}/{f.name}" for f, _ in find(root).splits["test"]) == [
            "cat/3.png",
            "cat/4.png",
            "dog/2.PNG",
        ]


def noise(mode: str, size: tuple[int, int] = (24, 16)) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)).convert(mode)


def palette_with_transparency(path: Path) -> np.ndarray:
    image = Image.new("P", (16, 16))
    image.putpalette([255, 0, 0, 0, 255, 0] + [0] * 762)
    image.paste(1, (0, 0, 8, 16))
    image.save(path, transparency=b"\x80\xff")
    half_red = 255 - 128  # on white
    return np.tile(np.array([[[0, 255, 0]]] * 8 + [[[255, half_red, half_red]]] * 8).transpose(1, 0, 2), (16, 1, 1))


def deep_grey(path: Path) -> np.ndarray:
    grey = np.arange(256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(grey * 256 + 100).save(path)
    return np.repeat(grey[..., None], 3, 2)


def deep_grey_with_transparency(path: Path) -> np.ndarray:
    """The first column is of the one grey that is transparent."""
    grey = np.tile(np.arange(16, dtype=np.uint16), (16, 1))
    Image.fromarray(grey * 256 + 100).save(path, transparency=100)
    grey[:, 0] = 255
    return np.repeat(grey[..., None], 3, 2)


def rotated(path: Path) -> np.ndarray:
    """Stored lying on its side, with the EXIF remark that says so."""
    upright = noise("RGB", (16, 16))
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    return np.asarray(upright)


def plain(mode: str) -> Callable[[Path], np.ndarray]:
    def make(path: Path) -> np.ndarray:
        image = noise(mode, (16, 16))
        image.save(path)
        return np.asarray(image.convert("RGB"))

    return make


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("x.png", plain("RGB")),
        ("x.PNG", plain("L")),
        ("x.png", plain("1")),
        ("x.png", plain("LA")),
        ("x.png", plain("RGBA")),
        ("x.png", plain("P")),
        ("x.png", palette_with_transparency),
        ("x.png", deep_grey),
        ("x.png", deep_grey_with_transparency),
        ("x.png", rotated),
    ],
)
def test_kinds_of_png(name: str, make: Callable[[Path], np.ndarray], tmp_path: Path) -> None:
    """Every kind becomes the 8-bit colours that it shows, exactly."""
    picture(tmp_path / "b/x.png")
    (tmp_path / "a").mkdir()
    wanted = make(tmp_path / "a" / name)
    images, labels = load("train", str(tmp_path), size=16)
    np.testing.assert_array_equal(images[labels == 0][0], wanted)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_kinds_of_jpeg(mode: str, tmp_path: Path) -> None:
    """Close to the colours before the compression; in grey too."""
    (tmp_path / "a").mkdir()
    smooth = Image.new("RGB", (16, 16), (200, 100, 50)).convert(mode)
    smooth.save(tmp_path / "a/x.jpg", quality=95)
    picture(tmp_path / "b/x.jpeg")
    for channels, kind in ((3, "RGB"), (1, "L")):
        images, labels = load("train", str(tmp_path), size=16, channels=channels)
        wanted = np.asarray(smooth.convert("RGB").convert(kind)).reshape(16, 16, channels)
        np.testing.assert_allclose(images[labels == 0][0], wanted, atol=3)


@pytest.mark.parametrize(("width", "height"), [(48, 16), (16, 48), (300, 100), (1, 1), (5, 7)])
def test_any_size_is_scaled_and_cut_to_the_centre(width: int, height: int, tmp_path: Path) -> None:
    """The outer thirds of the longer side are black and go."""
    for kind in "ab":
        image = Image.new("RGB", (width, height), (0, 0, 0))
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        image.paste((250, 250, 250), (left, top, left + side, top + side))
        (tmp_path / kind).mkdir()
        image.save(tmp_path / kind / "x.png")
    images, _ = load("train", str(tmp_path), size=16)
    assert images.shape == (2, 16, 16, 3)
    assert images[:, 2:-2, 2:-2].min() == 250


def test_the_second_load_decodes_nothing(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load("train", str(pets))
    with monkeypatch.context() as patched:
        patched.setattr(folder, "decoded", lambda *_: pytest.fail("decoded again"))
        again = load("train", str(pets))
        np.testing.assert_array_equal(first[0], again[0])
        np.testing.assert_array_equal(first[1], again[1])
        with pytest.raises(pytest.fail.Exception):
            load("train", str(pets), size=8)


def test_a_changed_picture_is_decoded_again(pets: Path) -> None:
    """Also with the size it had; and an added one."""
    before = greys("train+test", pets)
    file = pets / "cat/3.png"
    size, when = file.stat().st_size, file.stat().st_mtime_ns
    picture(file, 99)
    os.utime(file, ns=(when + 1, when + 1))
    assert file.stat().st_size == size
    assert greys("train+test", pets) == sorted([(99 if g == 13 else g, label) for g, label in before])
    picture(pets / "dog/new.png", 98)
    assert (98, 1) in greys("train+test", pets)


def bomb(width: int, height: int) -> bytes:
    """The first bytes of a PNG that says it is that large."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    body = b"IDAT" + zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunks + struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not a readable picture: cannot identify image file"),
        (b"GIF89a", "is not a readable picture"),
        (bomb(8, 8)[:40], "is not a readable picture"),
        (bomb(8_000, 8_000), "8000 x 8000 pixels are more than 50000000"),
        (bomb(10_000, 10_000), "10000 x 10000 pixels are more than 50000000"),
        (bomb(100_000, 100_000), "is not a readable picture: Image size (10000000000 pixels) exceeds limit"),
    ],
    ids=["empty", "gif", "cut", "64M", "100M", "10G"],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # as `worker.silence_size_warnings` has it
def test_unreadable_pictures_are_named(content: bytes, said: str, pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture that would unpack to gigabytes is refused by its header, before it is unpacked."""
    (pets / "cat/x.png").write_bytes(content)
    unpack = ImageFile.load
    monkeypatch.setattr(ImageFile, "load", lambda self: pytest.fail("unpacked") if self.width > 99 else unpack(self))
    said_in_full = mistake(pets, "train+test")
    assert str(pets / "cat/x.png") in said_in_full
    assert said in said_in_full


def test_a_truncated_jpeg_is_named(pets: Path) -> None:
    noise("RGB", (200, 200)).save(pets / "dog/x.jpg")
    content = (pets / "dog/x.jpg").read_bytes()
    (pets / "dog/x.jpg").write_bytes(content[: len(content) // 2])
    assert "dog/x.jpg is not a readable picture: image file is truncated" in mistake(pets, "train+test")


def test_a_folder_called_like_a_picture_is_a_folder(pets: Path) -> None:
    picture(pets / "dog/x.jpg/y.png", 250)
    assert (250, 1) in greys("train+test", pets)


def test_mistakes_of_the_folder(tmp_path: Path, pets: Path) -> None:
    assert "set --config.data_dir=PATH" in mistake(None)
    assert f"data_dir={tmp_path / 'none'}: no such folder" in mistake(tmp_path / "none")
    assert "no such folder" in mistake(pets / "cat/0.png")
    assert "no such folder" in mistake("~nobody-of-that-name/x")
    (tmp_path / "empty").mkdir()
    assert "0 class folders found, at least 2 are needed" in mistake(tmp_path / "empty")
    picture(tmp_path / "one/cat/x.png")
    assert "1 class folders found, at least 2 are needed" in mistake(tmp_path / "one")
    (pets / "bird").mkdir()
    assert f"class folder {pets / 'bird'} holds no picture that can be read" in mistake(pets)


@pytest.mark.parametrize("arguments", [{"size": 0}, {"size": -3}, {"size": 5000}, {"channels": 2}])
def test_mistakes_of_the_arguments(arguments: dict[str, int], pets: Path) -> None:
    assert "size 1 to 1024, channels 1 or 3" in mistake(pets, **arguments)


def test_names_of_any_bytes(tmp_path: Path) -> None:
    """File names that are no text: found, split, decoded and cached like others."""
    for kind in (b"a\xff", b"b"):
        target = os.path.join(os.fsencode(tmp_path), kind)
        os.mkdir(target)
        for name in (b"1\xfe.png", b"2 \xc3\xa4.png"):
            with open(os.path.join(target, name), "wb") as file:
                Image.new("RGB", (8, 8), (9, 9, 9)).save(file, "PNG")
    assert info(str(tmp_path)).splits == {"train": 2, "test": 2}
    assert greys("train", tmp_path) == [(9, 0), (9, 1)]


def test_from_pictures_to_a_trained_network(clean_env: dict[str, str], tmp_path: Path) -> None:
    """The real command: dark and bright pictures are told apart after a few updates; a second start trains nothing."""
    rng = np.random.default_rng(0)
    for kind, low in (("bright", 150), ("dark", 0)):
        (tmp_path / "pictures" / kind).mkdir(parents=True)
        for i in range(40):
            pixels = rng.integers(low, low + 100, (10, 14, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / kind / f"{i}.jpg")
    words = ["--config=experiments/folder.py", "--config.data_dir=pictures", "--config.dataset=folder(size=8)",
             "--config.model.widths=((8,),(8,))", "--config.model.kernels=(3,3)", "--config.model.pools=('avg',)",
             "--config.model.dropout=0", "--config.epochs=3", "--config.batch_size=16", "--config.augment=()",
             "--config.schedule.boundaries_epochs=()", "--config.schedule.warmup_epochs=0"]  # fmt: skip
    clean_env["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    for start in (1, 2):
        done = subprocess.run(
            [sys.executable, "-m", "nin_jax.main", *words], capture_output=True, text=True, cwd=tmp_path,
            env=clean_env | {"PYTHONPATH": str(ROOT)}, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert len(list(Path(clean_env["XDG_CACHE_HOME"], "nin_jax").glob("folder-train-8x3-*"))) == 1, start
        assert "bright         32          8" in done.stderr
    summary = json.loads((tmp_path / "runs/folder/summary.json").read_text())
    assert (summary["status"], summary["step"], summary["test_examples"]) == ("done", 12, 16)
    assert summary["test_error_pct"] < 20
