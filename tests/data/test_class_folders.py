"""A user's folder as cameras, browsers, phones and network storage leave it: splits, classes, kinds of files, links, order."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from nin_jax.console import say
from nin_jax.data.class_folders import LITTER, find
from nin_jax.data.datasets.folder import info, load
from nin_jax.data.pictures import SUFFIXES
from nin_jax.data.splits import UNREADABLE, usable
from nin_jax.errors import UserError
from tests.data.datasets.test_folder import picture


def tree(root: Path, files: str, value: int = 128) -> Path:
    """Pictures "cat/1 cat/2 dog/1", as PNG where no other ending is given."""
    for name in files.split():
        picture(root / (name if "." in Path(name).name else f"{name}.png"), value)
    return root


def refused(root: Path, split: str = "train") -> str:
    with pytest.raises(UserError) as caught:
        load(split, str(root))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- layouts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "other", "split"),
    [
        ("Training", "Testing", "test"),
        ("train", "val", "validation"),
        ("train", "valid", "validation"),
        ("TRAIN", "Validation", "validation"),
        ("Train", "test", "test"),
        ("training", "TESTING", "test"),
    ],
)
def test_split_folders_by_their_usual_names(train: str, other: str, split: str, tmp_path: Path) -> None:
    """The classes are those inside them, and each split has its own pictures."""
    tree(tmp_path, f"{train}/cat/1 {train}/cat/2 {train}/dog/1", 10)
    tree(tmp_path, f"{other}/cat/1 {other}/dog/1", 20)
    facts = info(str(tmp_path))
    assert facts.class_names == ("cat", "dog")
    assert facts.splits == {"train": 3, split: 2}
    for name, grey, labels in (("train", 10, [0, 0, 1]), (split, 20, [0, 1]), (other.lower(), 20, [0, 1])):
        images, found = load(name, str(tmp_path))
        assert set(images.ravel().tolist()) == {grey}
        assert sorted(found.tolist()) == labels
    assert len(load(f"{other}[:1]+train[1:]", str(tmp_path))[1]) == 3


def test_three_splits(tmp_path: Path) -> None:
    tree(tmp_path, " ".join(f"{split}/{kind}/{i}" for split in ("train", "val", "test") for kind in "ab" for i in "12"))
    assert info(str(tmp_path)).splits == {"test": 4, "train": 4, "validation": 4}


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ("cat/1 dog/1 train/1", "train would be splits, but cat, dog beside them would not"),
        ("cat/1 dog/1 Test/1 val/1", "Test, val would be splits, but cat, dog beside them would not"),
        ("train/cat/1 train/dog/1 extra/1", "train would be splits, but extra beside them would not"),
        (
            "train/cat/1 train/dog/1 val/cat/1 validation/dog/1",
            "both val and validation would be the split 'validation'",
        ),
        ("train/1 test/1", "would be a split, but holds no class folders"),
        ("train/train/1 train/test/1", "train would be a split, but holds the folders test, train"),
        ("cat/train/1 cat/test/1 dog/train/1", "cat/test: a split within the class 'cat'"),
        ("archive/train/cat/1 archive/test/dog/1", "one folder deeper; set --config.data_dir="),
        ("train/cat/1 train/dog/1 test/cats/1", "the split 'test' has classes that are not in train: cats"),
        ("training_set/cats/1 test_set/cats/1", "training_set and test_set would be classes, but look like splits"),
        (
            "seg_train/cat/1 seg_test/cat/1 seg_pred/x/1",
            "seg_train and seg_test would be classes, but look like splits",
        ),
        ("Dev2/cat/1 TrainImages/cat/1", "TrainImages and Dev2 would be classes, but look like splits"),
        ("yes/1 no/1 brain_dataset/yes/1 brain_dataset/no/1", "called like a class, inside the class 'brain_dataset'"),
        ("train/cat/1 train/dog/1 train/all/Dog/1 test/cat/1", "called like a class, inside the class 'all'"),
        ("train/Cat/1 train/dog/1 test/cat/1", "the classes 'Cat' and 'cat' differ in capitals alone"),
    ],
)
def test_what_may_be_meant_in_two_ways_is_refused(files: str, said: str, tmp_path: Path) -> None:
    assert said in refused(tree(tmp_path, files))


def test_a_class_may_be_called_like_a_split_inside_a_split(tmp_path: Path) -> None:
    """As in CIFAR-100, which has trains: what the upper folders are leaves no doubt."""
    tree(tmp_path, "train/bus/1 train/train/1 test/bus/1 test/train/1")
    assert info(str(tmp_path)).class_names == ("bus", "train")


def test_words_of_splits_in_the_names_of_classes(tmp_path: Path) -> None:
    """Pictures right inside, or but one such name: they are classes."""
    tree(tmp_path / "a", "bullet_train/1 test_tube/1")
    assert info(str(tmp_path / "a")).class_names == ("bullet_train", "test_tube")
    tree(tmp_path / "c", "cat/cat/1 dog/dog/1 dog/old/2")  # unpacked into folders of their own names
    assert info(str(tmp_path / "c")).splits == {"train": 2, "test": 1}
    tree(tmp_path / "b", "bullet_train/red/1 bullet_train/blue/2 cat/1 valley/old/1")
    assert info(str(tmp_path / "b")).class_names == ("bullet_train", "cat", "valley")


# --- order -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [20, 50, 80])
def test_every_slice_has_its_share_of_every_class(share: int, tmp_path: Path) -> None:
    """No slice is of the last class alone, whatever the sizes of the classes."""
    counts = {"ant": 50, "bee": 20, "cat": 10}
    tree(tmp_path / "train", " ".join(f"{kind}/{i}" for kind, n in counts.items() for i in range(n)))
    for split, part in ((f"train[:{share}%]", share), (f"train[{share}%:]", 100 - share)):
        _, labels = load(split, str(tmp_path), size=1)
        for label, n in enumerate(counts.values()):
            assert abs(np.sum(labels == label) - n * part / 100) <= 1, (split, label)


def test_the_order_is_mixed_and_that_of_the_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same on a copy elsewhere, whatever order the file system gives; pinned, as a held-out slice must stay the same."""
    tree(tmp_path / "a/train", " ".join(f"{kind}/{i}" for kind in ("cat", "dog") for i in range(30)))

    def names(root: Path) -> list[str]:
        return [f"{file.parent.name}/{file.stem}" for file, _ in find(root).splits["train"]]

    here = names(tmp_path / "a")
    assert here[:6] == PINNED
    numbers = [int(name.split("/")[1]) for name in here if name.startswith("cat")]
    assert numbers != sorted(numbers)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    scandir = os.scandir

    class Backwards(list):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(os, "scandir", lambda path: Backwards([*scandir(path)][::-1]))
    assert names(tmp_path / "b") == here


PINNED = ["cat/21", "dog/27", "cat/20", "dog/19", "cat/17", "dog/13"]


def test_the_order_does_not_depend_on_the_locale(tmp_path: Path) -> None:
    """Names with accents, of macOS and of others, where Python takes names of files for ASCII."""
    accents = "caf\u00e9", "cafe\u0301"
    tree(tmp_path, " ".join(f"{kind}/{name}{i}" for kind in ("cat", "dog") for name in accents for i in range(7)))
    program = f"""
import os, sys
from pathlib import Path
from nin_jax.data.class_folders import find
splits = find(Path({str(tmp_path)!r})).splits
print(sys.getfilesystemencoding(), {{name: [os.fsencode(path).hex() for path, _ in splits[name]] for name in splits}})
"""
    found = {}
    for encoding, settings in {
        "utf-8": {"PYTHONUTF8": "1"},
        "ascii": {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"},
    }.items():
        run = [sys.executable, "-c", program]
        out = subprocess.run(run, env=os.environ | settings, check=True, capture_output=True, text=True).stdout
        used, found[encoding] = out.split(" ", 1)
        assert used == encoding
    assert found["ascii"] == found["utf-8"]


def test_accents_taken_apart_by_macos_change_nothing(tmp_path: Path) -> None:
    """One letter or a letter and an accent: the same classes in the same order."""
    orders = []
    for root, name in (("linux", "caf\u00e9"), ("mac", "cafe\u0301")):
        tree(tmp_path / root, " ".join(f"{kind}/{name}{i}" for kind in (name, "cafz") for i in range(8)))
        found = find(tmp_path / root)
        assert found.classes == ("cafz", "caf\u00e9")
        orders.append([(file.stem[-1], label) for file, label in found.splits["train"]])
    assert orders[0] == orders[1]


def test_classes_that_a_split_lacks_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree(tmp_path, " ".join(f"{kind}/{i}" for kind in ("cat", "dog", "emu") for i in range(5)))
    facts = info(str(tmp_path))
    usable(load("train[:2]", str(tmp_path)), facts, "split 'train[:2]'", "stop")
    _, labels = load("train[:2]", str(tmp_path))
    (absent,) = {0, 1, 2} - set(labels.tolist())
    assert f"split 'train[:2]' has no example of 1 of 3 classes: {facts.class_names[absent]}" in capsys.readouterr().err


# --- files -----------------------------------------------------------------------------------------------------------

FORMATS = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif", ".JPG"), "JPEG"),
    **{".mpo": "MPO", ".png": "PNG", ".apng": "PNG", ".webp": "WEBP", ".gif": "GIF", ".bmp": "BMP", ".tif": "TIFF"},
    **{".TIFF": "TIFF", ".avif": "AVIF", ".ico": "ICO", ".ppm": "PPM", ".pnm": "PPM", ".pgm": "PPM", ".pbm": "PPM"},
    **dict.fromkeys((".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"), "JPEG2000"),
}


def test_every_ending_that_is_decoded_is_taken(tmp_path: Path) -> None:
    """With the grey that was written, as far as the format keeps it."""
    assert {suffix.lower() for suffix in FORMATS} == SUFFIXES
    for kind, grey in (("dark", 40), ("light", 200)):
        (tmp_path / kind).mkdir()
        for suffix, form in FORMATS.items():
            mode = {".pgm": "L", ".pbm": "1"}.get(suffix, "RGB")
            Image.new("RGB", (16, 16), (grey,) * 3).convert(mode).save(tmp_path / kind / f"x{suffix}", form)
    facts = info(str(tmp_path))
    assert facts.counts["pictures"] == 2 * len(FORMATS)
    assert facts.counts["unreadable"] == facts.counts["left_out"] == 0
    images, labels = load("train+test", str(tmp_path), size=4)
    means = images.mean((1, 2, 3))
    assert len(labels) == 2 * len(FORMATS)
    assert np.sum(np.abs(means - np.where(labels == 0, 40, 200)) < 8) >= 2 * (
        len(FORMATS) - 1
    )  # .pbm is black or white
    assert means[labels == 0].max() < means[labels == 1].min() or set(means[labels == 0]) & {0, 255}


def test_what_looks_like_a_picture_and_is_not_taken_is_counted(tmp_path: Path) -> None:
    tree(tmp_path, "cat/1 cat/2 dog/1 dog/2 loose.jpg")
    for name in ("cat/a.HEIC", "cat/b.heic", "dog/c.dng", "dog/d.svg"):
        (tmp_path / name).write_bytes(b"x")
    shutil.copy(tmp_path / "cat/1.png", tmp_path / "cat/backup")
    shutil.copy(tmp_path / "cat/1.png", tmp_path / "cat/1.png.bak")
    (tmp_path / "cat/remarks.txt").write_text("mine")
    facts = info(str(tmp_path))
    assert facts.found[-1] == (
        "left out: 1 .dng (not decoded here), 2 .heic (not decoded here), 1 .svg (not decoded here), 1 in no class folder, "
        "1 named *.bak (pictures by their content), 1 named without an ending (pictures by their content)"
    )
    assert (facts.counts["pictures"], facts.counts["left_out"]) == (4, 7)


def test_a_class_of_nothing_but_heic_is_refused_with_the_reason(tmp_path: Path) -> None:
    tree(tmp_path, "cat/1 dog/1")
    (tmp_path / "emu").mkdir()
    (tmp_path / "emu/IMG_1.heic").write_bytes(b"x")
    assert "emu holds no picture that can be read (left out: 1 .heic (not decoded here))" in refused(tmp_path)


def test_the_litter_of_systems_is_no_class_and_no_picture(tmp_path: Path) -> None:
    tree(tmp_path, "cat/1 cat/2 dog/1 dog/2")
    before = info(str(tmp_path))
    for name in (*LITTER, ".DS_Store", ".@__thumb", "@eaDir", "#Recycle", "__MACOSX", ".ipynb_checkpoints"):
        picture(tmp_path / name / "x.png")
        picture(tmp_path / "cat" / name / "SYNOPHOTO_THUMB_M.jpg")
    (tmp_path / "dog/Thumbs.db").write_bytes(b"\xff\xd8\xff\xe0")
    (tmp_path / "dog/._1.png").write_bytes(b"\x89PNG\r\n")
    assert info(str(tmp_path)) == before


# --- links -----------------------------------------------------------------------------------------------------------


def test_linked_folders_and_pictures_are_taken(tmp_path: Path) -> None:
    """Inside a class, as a class, and as a split."""
    tree(tmp_path / "store", "more/1 more/2 more/deep/3 bird/1 bird/2", 30)
    tree(tmp_path / "mine", "cat/1 cat/2 dog/1 dog/2")
    (tmp_path / "mine/cat/more").symlink_to(tmp_path / "store/more")
    (tmp_path / "mine/bird").symlink_to("../store/bird")
    (tmp_path / "mine/dog/x.png").symlink_to(tmp_path / "store/bird/1.png")
    facts = info(str(tmp_path / "mine"))
    assert facts.class_names == ("bird", "cat", "dog")
    _, labels = load("train+test", str(tmp_path / "mine"))
    assert np.bincount(labels).tolist() == [2, 5, 3]
    tree(tmp_path / "split", "train/a/1 train/b/1")
    (tmp_path / "split/test").symlink_to(tmp_path / "mine")
    assert "has classes that are not in train: bird, cat, dog" in refused(tmp_path / "split")


def test_loops_end(tmp_path: Path) -> None:
    """Links to a folder above, to another class, to themselves, and twice to one folder: each picture once."""
    tree(tmp_path / "root", "cat/1 cat/2 dog/1 dog/2")
    tree(tmp_path, "beside/1")
    for name, target in (("up", ".."), ("higher", "../.."), ("self", "."), ("dogs", "../dog"), ("loop", "loop")):
        (tmp_path / "root/cat" / name).symlink_to(target)
    for name in ("once", "twice"):
        (tmp_path / "root/dog" / name).symlink_to(tmp_path / "beside")
    found = find(tmp_path / "root")
    names = sorted(str(file.relative_to(tmp_path / "root")) for split in found.splits.values() for file, _ in split)
    assert names == ["cat/1.png", "cat/2.png", "cat/loop", "dog/1.png", "dog/2.png", "dog/once/1.png"]
    assert found.left_out == {"linked folders that are read already": 5}


def test_two_names_of_one_folder_are_refused(tmp_path: Path) -> None:
    tree(tmp_path, "train/cat/1 train/dog/1")
    (tmp_path / "train/emu").symlink_to("dog")
    assert "dog and" in refused(tmp_path)
    (tmp_path / "train/emu").unlink()
    (tmp_path / "test").symlink_to("train")
    assert "are one folder, by a link" in refused(tmp_path)


@pytest.mark.parametrize("name", ["x.png", "more", "X.JPG"])
def test_a_link_that_leads_nowhere_is_a_bad_record(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree(tmp_path, " ".join(f"{kind}/{i}" for kind in ("cat", "dog") for i in range(4)))
    (tmp_path / "dog" / name).symlink_to("/not-mounted/x")
    said = f"dog/{name} is not a readable picture: it is a link to /not-mounted/x, which is not there"
    assert said in refused(tmp_path, "train+test")
    capsys.readouterr()
    images, labels = load("train+test", str(tmp_path), bad_records="skip")
    assert said.replace(": it", " is left out: it") in capsys.readouterr().err
    assert np.bincount(labels[labels != UNREADABLE]).tolist() == [4, 4]
    facts = info(str(tmp_path))
    assert facts.counts["unreadable"] == 1
    assert usable((images, labels), facts, "x", "skip")[1] == 1


def test_a_class_that_is_a_link_to_nowhere_is_refused(tmp_path: Path) -> None:
    tree(tmp_path, "cat/1 dog/1")
    (tmp_path / "emu").symlink_to("/not-mounted/emu")
    (tmp_path / "notes.txt").symlink_to("/not-mounted/notes.txt")
    assert f"{tmp_path / 'emu'} is a link to /not-mounted/emu, which is not there" in refused(tmp_path)


# --- transparency and the table --------------------------------------------------------------------------------------


def test_transparent_pictures_are_laid_on_white(tmp_path: Path) -> None:
    """Black shapes on a transparent ground stay visible; half-transparent ones are blended; another ground may be asked for."""
    for kind in ("bar", "circle"):
        (tmp_path / kind).mkdir()
        for mode in ("RGBA", "LA", "P"):
            shape = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
            ImageDraw.Draw(shape).rectangle([4, 4, 11, 11], fill=(0, 0, 0, 255))
            shape.convert(mode).save(tmp_path / kind / f"{mode}.png")
        Image.new("RGBA", (16, 16), (200, 100, 0, 128)).save(tmp_path / kind / "half.webp", lossless=True)
        Image.new("RGBA", (16, 16), (9, 9, 9, 255)).save(tmp_path / kind / "opaque.png")
    images, _ = load("train+test", str(tmp_path), size=16)
    wanted = np.full((16, 16, 3), 255)
    wanted[4:12, 4:12] = 0
    assert sum(np.array_equal(image, wanted) for image in images) == 6
    half = [image for image in images if abs(int(image[0, 0, 0]) - 227) <= 1]
    assert len(half) == 2
    np.testing.assert_allclose(half[0][0, 0], [227, 177, 127], atol=1)
    on_blue, _ = load("train+test", str(tmp_path), size=16, background="#0000ff")
    assert sum(np.array_equal(image[0, 0], [0, 0, 255]) for image in on_blue) == 6
    facts = info(str(tmp_path), size=16)
    assert (facts.counts["transparent"], facts.counts["colour"]) == (8, 2)
    assert facts.found[-2] == "sizes 16 x 16 to 16 x 16; 2 colour, 8 transparent (laid on white)"
    with pytest.raises(UserError, match="background='whitish'"):
        info(str(tmp_path), background="whitish")


def test_pixels_of_32_bits_are_refused_and_those_of_16_are_not_clipped(tmp_path: Path) -> None:
    tree(tmp_path, "a/1 b/1 b/2")
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(tmp_path / "a/float.tif")
    assert "32-bit numbers (mode F), and nothing says which are black and white" in refused(tmp_path, "train+test")
    assert info(str(tmp_path)).counts["unreadable"] == 1
    (tmp_path / "a/float.tif").unlink()
    (tmp_path / "a/deep.pgm").write_bytes(b"P5 8 8 65535\n" + np.full((8, 8), 0x8123, ">u2").tobytes())
    Image.fromarray(np.full((8, 8), 0x8123, np.uint16)).save(tmp_path / "a/deep.tif")
    images, labels = load("train+test", str(tmp_path), size=8)
    assert sorted(set(images[labels == 0].ravel().tolist())) == [0x80, 0x81] or set(images[labels == 0].ravel()) == {
        128
    }


def test_the_table_says_what_was_found(tmp_path: Path) -> None:
    tree(tmp_path, "train/cat/1 train/cat/2 train/cat/3 train/zebra/1 val/cat/1")
    Image.new("L", (640, 480)).save(tmp_path / "train/zebra/grey.jpg")
    (tmp_path / "train/zebra/broken.png").write_bytes(b"x")
    (tmp_path / "val/zebra").mkdir()
    picture(tmp_path / "val/zebra/x.png", size=(3, 5))
    assert info(str(tmp_path)).found == (
        f"{tmp_path}: 8 pictures of 2 classes",
        "           train validation",
        "cat            3          1",
        "zebra          3          1",
        "sizes 3 x 5 to 640 x 480; 6 colour, 1 grey, 1 unreadable",
        "left out: nothing",
    )


def test_names_of_classes_do_nothing_to_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Colours, new lines, and bytes that are no text."""
    for name in (b"\x1b[31mred", b"two\nlines", b"\xff"):
        (tmp_path / os.fsdecode(name)).mkdir()
        picture(tmp_path / os.fsdecode(name) / "x.png")
    for line in info(str(tmp_path)).found:
        say(line)
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert err.count("\n") == 7
    assert [line.split()[0] for line in err.splitlines()[2:5]] == [r"\x1b[31mred", r"two\nlines", r"\udcff"]


def test_the_table_of_many_classes_stays_short(tmp_path: Path) -> None:
    tree(tmp_path / "train", " ".join(f"class{k:02}/{i}" for k in range(30) for i in range(1 + (k == 7))))
    lines = info(str(tmp_path)).found
    assert len(lines) == 4
    assert lines[1].startswith("train: 31, from 1 of class")
    assert lines[1].endswith("to 2 of class07")
