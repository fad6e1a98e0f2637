"""ImageNet's official archives, made small by the tests, packed as TFDS would and read back by TFDS."""

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from nin_jax.data.datasets import imagenet
from nin_jax.data.prepare import pack, prepare
from nin_jax.data.tfds import check_prepared
from nin_jax.errors import UserError

LABELS = tfds.core.tfds_path("datasets/imagenet2012/labels.txt").read_text().split()
VALIDATION = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt").read_text().split()
WNIDS = (LABELS[3], LABELS[0], LABELS[999])


def picture(seed: int, mode: str = "RGB", form: str = "JPEG", width: int = 40, height: int = 30) -> bytes:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8)).resize((width, height)).convert(mode)
    file = io.BytesIO()
    small.save(file, form)
    return file.getvalue()


def tar(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def train_files() -> dict[str, dict[str, bytes]]:
    """Of each class four pictures; one is a PNG and one is CMYK, as in the official archive."""
    files = {w: {f"{w}_{i}.JPEG": picture(10 * k + i) for i in range(4)} for k, w in enumerate(WNIDS)}
    files[WNIDS[1]][f"{WNIDS[1]}_0.JPEG"] = picture(100, form="PNG")
    files[WNIDS[2]][f"{WNIDS[2]}_3.JPEG"] = picture(101, mode="CMYK")
    return files


def validation_files() -> dict[str, bytes]:
    return {f"ILSVRC2012_val_{i:08d}.JPEG": picture(200 + i, width=30, height=44) for i in (1, 2, 77, 50_000)}


@pytest.fixture
def archives(tmp_path) -> Path:
    folder = tmp_path / "archives"
    folder.mkdir()
    inner = {f"{wnid}.tar": tar(files) for wnid, files in train_files().items()}
    (folder / "ILSVRC2012_img_train.tar").write_bytes(tar(inner))
    (folder / "ILSVRC2012_img_val.tar").write_bytes(tar(validation_files()))
    return folder


def read(data_dir: Path, split: str) -> dict[str, tuple[bytes, int]]:
    """Encoded picture and label by name, in order, through TFDS alone."""
    decoders = {"image": tfds.decode.SkipDecoding()}
    source = tfds.data_source("imagenet2012", split=split, data_dir=data_dir, download=False, decoders=decoders)
    return {source[i]["file_name"].decode(): (source[i]["image"], source[i]["label"]) for i in range(len(source))}


def test_tars_as_tfds_reads_them(archives, tmp_path, capsys):
    data_dir = tmp_path / "data"
    prepare.prepare_imagenet(data_dir, archives, 0, 1)
    assert "warning: train has 12 pictures of 3 classes, not 1281167 of 1000" in capsys.readouterr().err
    train, wanted = read(data_dir, "train"), {k: v for files in train_files().values() for k, v in files.items()}
    assert train.keys() == wanted.keys()
    assert list(train) != sorted(train)
    for name, (image, label) in train.items():
        assert LABELS[label] == name.split("_")[0]
        opened = Image.open(io.BytesIO(image))
        assert (opened.format, opened.mode) == ("JPEG", "RGB")
        if wanted[name] in (picture(100, form="PNG"), picture(101, mode="CMYK")):
            original = np.asarray(Image.open(io.BytesIO(wanted[name])).convert("RGB"), int)
            assert np.abs(np.asarray(opened, int) - original).mean() < 3
        else:
            assert image == wanted[name]
    validation = read(data_dir, "validation")
    assert {name: image for name, (image, _) in validation.items()} == validation_files()
    assert all(LABELS[label] == VALIDATION[int(name[15:23]) - 1] for name, (_, label) in validation.items())
    split = imagenet.load("train[:5]+validation", str(data_dir), size=16, short=20)
    assert [split.open(i)[3] for i in range(9)] == [
        label for _, label in [*list(train.values())[:5], *validation.values()]
    ]
    info = json.loads((data_dir / "imagenet2012/5.1.0/dataset_info.json").read_text())
    assert [s["name"] for s in info["splits"]] == ["train", "validation"]
    prepare.prepare_imagenet(data_dir, archives, 0, 1)
    assert "already prepared" in capsys.readouterr().out


def test_class_folders_made_smaller_in_processes(tmp_path, monkeypatch):
    """The same pictures in folders, as two shards, in the same order, with a short side of 20 pixels."""
    for wnid, files in train_files().items():
        for name, data in files.items():
            path = tmp_path / "tree" / "train" / wnid / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    (tmp_path / "tree" / "val").mkdir()
    for name, data in validation_files().items():
        (tmp_path / "tree" / "val" / name).write_bytes(data)
    monkeypatch.setattr(pack, "SHARD_BYTES", 2000)
    prepare.prepare_imagenet(tmp_path / "data", tmp_path / "tree", 20, 2)
    assert len(list((tmp_path / "data/imagenet2012/5.1.0").glob("*train.array_record-*"))) > 1
    train = read(tmp_path / "data", "train")
    assert [LABELS[label] for _, label in train.values()] == [name.split("_")[0] for name in train]
    assert {Image.open(io.BytesIO(image)).size for image, _ in train.values()} == {(27, 20)}
    assert {Image.open(io.BytesIO(image)).size for image, _ in read(tmp_path / "data", "validation").values()} == {
        (20, 29)
    }
    one = Image.open(io.BytesIO(train[f"{WNIDS[0]}_1.JPEG"][0]))
    exact = Image.open(io.BytesIO(picture(1))).resize((27, 20), Image.Resampling.BILINEAR)
    assert np.abs(np.asarray(one, int) - np.asarray(exact, int)).mean() < 6


def test_a_preparation_that_was_cut_short_goes_on(archives, tmp_path, monkeypatch):
    """Whole shards are kept, half of one is not taken for one, and nothing else is mixed in."""
    monkeypatch.setattr(pack, "SHARD_BYTES", 2000)
    real, calls = pack.write, []

    def dying(shard):
        if len(calls) == 2:
            shard.path.with_name(f".{shard.path.name}").write_bytes(b"half")
            raise KeyboardInterrupt
        calls.append(shard.path)
        real(shard)

    monkeypatch.setattr(pack, "write", dying)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare_imagenet(tmp_path / "data", archives, 0, 1)
    assert not (tmp_path / "data/imagenet2012/5.1.0").exists()
    with pytest.raises(UserError, match="of other pictures or with another --short"):
        prepare.prepare_imagenet(tmp_path / "data", archives, 20, 1)
    kept = {path: path.stat().st_mtime_ns for path in calls}
    monkeypatch.setattr(pack, "write", real)
    prepare.prepare_imagenet(tmp_path / "data", archives, 0, 1)
    final = tmp_path / "data/imagenet2012/5.1.0"
    assert {path: (final / path.name).stat().st_mtime_ns for path in kept} == kept
    assert len(read(tmp_path / "data", "train")) == 12
    assert not [f for f in final.iterdir() if f.name.startswith(".")]


def test_shards_that_are_gone_are_packed_again(archives, tmp_path, monkeypatch, capsys):
    """The others stay as they are; with another --short none does."""
    monkeypatch.setattr(pack, "SHARD_BYTES", 2000)
    data_dir = tmp_path / "data"
    prepare.prepare_imagenet(data_dir, archives, 0, 1)
    final, before = data_dir / "imagenet2012/5.1.0", read(data_dir, "train")
    first, second, *others = sorted(final.glob("*train.array_record*"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-1])
    kept = {path: path.stat().st_mtime_ns for path in others}
    with pytest.raises(UserError, match=f"lacks {first.name} or has a part of it alone"):
        check_prepared("imagenet", str(data_dir))
    prepare.prepare_imagenet(data_dir, archives, 0, 1)
    said = capsys.readouterr()
    assert f"lacks 2 files or has parts of them alone, such as {first.name}: preparing it again" in said.err
    check_prepared("imagenet", str(data_dir))
    assert read(data_dir, "train") == before
    assert {path: path.stat().st_mtime_ns for path in others} == kept


def inner(files: dict[str, bytes], name: str = f"{WNIDS[0]}.tar") -> bytes:
    return tar({name: tar(files)})


def link() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo(f"{WNIDS[0]}.tar")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    return file.getvalue()


GOOD = {f"{WNIDS[0]}_1.JPEG": picture(1)}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no tar at all", "is damaged"),
        (link(), "is no regular file"),
        (inner({"../../../evil.sh": b"x"}), "'evil.sh' is no name of a picture"),
        (inner(GOOD, "n00000000.tar"), "'n00000000.tar' is none of ImageNet's 1000 classes"),
        (inner({f"{WNIDS[0]}_1.JPEG": b"no picture"}), "n.*_1.JPEG is no readable picture: cannot identify"),
        (inner({f"{WNIDS[0]}_1.JPEG": picture(1)[:400]}), "_1.JPEG is no readable picture"),
        (inner({f"{WNIDS[0]}_1.JPEG": b""}), "has 0 bytes, expected 1 to"),
        (
            inner({f"{WNIDS[0]}_1.JPEG": picture(1, form="PNG", width=1200, height=1000)}),
            "1200 x 1000 pixels are more than 1000000",
        ),
        (tar({f"{WNIDS[0]}.tar": tar(GOOD), f"{WNIDS[1]}.tar": tar(GOOD)}), "two pictures of train have the same name"),
        (inner(GOOD)[:1200], "is cut off within|is damaged"),
    ],
    ids=["no tar", "link", "traversal", "class", "text", "truncated", "empty", "bomb", "twice", "cut off"],
)
def test_what_is_wrong_is_named_and_nothing_is_prepared(content, said, tmp_path, monkeypatch):
    monkeypatch.setattr(pack, "STREAMED_PIXELS", 1_000_000)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "ILSVRC2012_img_train.tar").write_bytes(content)
    with pytest.raises(UserError, match=said):
        prepare.prepare_imagenet(tmp_path / "data", tmp_path / "in", 20, 1)
    assert not (tmp_path / "data/imagenet2012/5.1.0").exists()
    assert {f.name for f in tmp_path.iterdir()} <= {"in", "data"}


def test_without_archives_one_line_says_where_they_are(tmp_path):
    command = [sys.executable, "-m", "nin_jax.data.prepare", "imagenet2012", f"--data_dir={tmp_path}"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert process.stderr.count("\n") == 1
    assert "ILSVRC2012_img_train.tar" in process.stderr
