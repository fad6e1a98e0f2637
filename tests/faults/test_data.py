"""Data in which something is wrong: it stops the run with one line that names it, or is left out, named and counted."""

from __future__ import annotations

import io
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nin_jax import main
from nin_jax.data.splits import UNREADABLE, Info, shared, take, usable
from nin_jax.data.tfds import decode_all
from nin_jax.errors import UserError
from tests.faults import harness


def mistake(tmp_path: Path, **changes: Any) -> str:
    """What a command that cannot train says."""
    with pytest.raises(UserError) as caught:
        main.run(main.parse(["nin_jax", *harness.words(tmp_path / "run", **changes)]))
    return str(caught.value)


# What is tried here is the data: the rest compiles quickly.
SIMPLE = {"epochs": 1, "preprocess": ("scale()",), "augment": (), "model.dropout": 0.0, "model.widths": ((8,), (8,))}


def trained(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    """The summary of a command."""
    main.run(main.parse(["nin_jax", *harness.words(tmp_path / "run", **SIMPLE | changes)]))
    return json.loads((tmp_path / "run" / "summary.json").read_text())


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (
            "label",
            "label 10 of example 3 is not between 0 and 9 (2 of 320 are bad; bad_records='skip' leaves them out)",
        ),
        ("nan", "images are float32 [320, 16, 16, 3], expected uint8"),
        ("inf", "images are float32 [320, 16, 16, 3], expected uint8"),
    ],
)
def test_what_no_data_set_may_hold(kind: str, said: str, tmp_path: Path, tally: Counter[str]) -> None:
    """A label that is no class, NaN and Inf in the inputs: a mistake that names them."""
    assert said in mistake(tmp_path, dataset=f'tests.faults.bad_data(kind="{kind}")')
    tally["exit 2, named"] += 1


def test_labels_that_are_no_class_left_out(tmp_path: Path, tally: Counter[str]) -> None:
    """With bad_records="skip" they are counted in the summary; where every one is bad, it is a mistake all the same."""
    summary = trained(tmp_path, dataset='tests.faults.bad_data(kind="label")', bad_records="skip")
    assert summary["bad_records"] == {"train": 2, "test": 2}
    assert summary["test_examples"] == 70
    said = mistake(tmp_path / "b", dataset='tests.faults.bad_data(kind="every label")', bad_records="skip")
    assert "no other can be used either" in said
    tally["left out and counted"] += 1


def test_a_class_without_examples(tmp_path: Path, capsys: pytest.CaptureFixture[str], tally: Counter[str]) -> None:
    """It is said, and the run goes on: a part of a data set may be wanted."""
    assert trained(tmp_path, dataset='tests.faults.bad_data(kind="empty class")')["status"] == "done"
    assert (
        "split 'train[:320]' of tests.faults.bad_data(kind=\"empty class\") has no example of 1 of 10 classes: 7"
        in capsys.readouterr().err
    )
    tally["said in a line"] += 1


def test_preprocessing_that_is_not_finite(tmp_path: Path, tally: Counter[str]) -> None:
    """What was fitted is looked at before it is used."""
    said = mistake(tmp_path, preprocess='("tests.faults.bad_op()",)')
    assert said == "'tests.faults.bad_op()': what was fitted has offset that is not finite"
    assert not (tmp_path / "run" / "preprocess.npz").exists()
    tally["exit 2, named"] += 1


def png(seed: int, side: int = 8) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side), np.uint8)).save(content, "PNG")
    return content.getvalue()


def damaged(content: bytes, luck: random.Random) -> bytes:
    """A picture that cannot be read: cut, other bytes, another size, another format."""
    gif = io.BytesIO()
    Image.new("L", (8, 8)).save(gif, "GIF")
    return luck.choice([content[: luck.randrange(40)], luck.randbytes(90), png(0, 9), gif.getvalue()])


def test_an_undecodable_record(luck: random.Random, tally: Counter[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Of a TFDS data set: "stop" names the first; "skip" marks each and every other example is what it was."""
    for _ in range(100 if harness.FULL else 10):
        contents = [png(i) for i in range(40)]
        good, labels = np.empty((40, 8, 8, 1), np.uint8), np.empty(40, np.int32)
        decode_all(lambda i: {"image": contents[i], "label": i % 10}, good, labels, "x")  # noqa: B023 - called at once
        bad = sorted(luck.sample(range(40), luck.randint(1, 5)))
        for i in bad:
            contents[i] = damaged(contents[i], luck)
        records = [{"image": content, "label": i % 10} for i, content in enumerate(contents)]
        images, found = np.empty_like(good), np.empty_like(labels)
        with pytest.raises(ValueError, match=rf"record ({'|'.join(map(str, bad))}) of x: .*bad_records='skip'"):
            decode_all(records.__getitem__, images, found, "x")
        capsys.readouterr()
        decode_all(records.__getitem__, images, found, "x", "skip")
        said = capsys.readouterr().err
        assert all(f"record {i} of x is left out: " in said for i in bad)
        assert np.flatnonzero(found == UNREADABLE).tolist() == bad
        rest = np.delete(np.arange(40), bad)
        np.testing.assert_array_equal(found[rest], labels[rest])
        np.testing.assert_array_equal(images[rest], good[rest])
        tally["named; the others unharmed"] += len(bad)


def test_slices_keep_their_examples() -> None:
    """What is left out keeps its place until the split is cut: no example goes from one part to another."""
    images = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1)
    labels = np.array([0, 1, UNREADABLE, 0, 1, 0, 1, 0, 1, 0], np.int32)
    info = Info("x", 2, (1, 1, 1), {"train": 10}, "")
    for split, wanted in (("train[:5]", [0, 1, 3, 4]), ("train[5:]", [5, 6, 7, 8, 9])):
        part = take(split, info.splits, lambda _: (images, labels), "x")
        (kept, _), left_out = usable(part, info, "x", "skip")
        assert kept.ravel().tolist() == wanted
        assert left_out == 5 - len(wanted)


def pictures(root: Path, **kinds: int) -> Path:
    """Pictures of noise, each class with a grey of its own: `pictures(root, cat=20, dog=10)`."""
    rng = np.random.default_rng(0)
    for k, (kind, number) in enumerate(kinds.items()):
        (root / kind).mkdir(parents=True, exist_ok=True)
        for i in range(number):
            pixels = rng.integers(80 * k, 80 * k + 60, (10, 12, 3), np.uint8)
            Image.fromarray(pixels).save(root / kind / f"{i}.png")
    return root


def of_folder(root: Path, train: str = "train", test: str = "test", **changes: Any) -> dict[str, Any]:
    return {"dataset": "folder(size=16)", "data_dir": root, "train_split": train, "eval_split": test} | changes


@pytest.mark.parametrize(
    ("train", "other", "split"),
    [
        ("Training", "Testing", "test"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [("train", "val", "validation"), ("TRAIN", "valid", "val")]
        ),
    ],
)
def test_split_folders_of_any_usual_name(
    train: str, other: str, split: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], tally: Counter[str]
) -> None:
    """The network is one of the three classes, is tested on the other folder's pictures, and the table says so."""
    pictures(tmp_path / "in" / train, cat=20, dog=20, horse=20)
    pictures(tmp_path / "in" / other, cat=8, dog=8, horse=8)
    summary = trained(tmp_path, **of_folder(tmp_path / "in", test=split))
    assert summary["test_examples"] == 24
    said = capsys.readouterr().err
    assert "84 pictures of 3 classes" in said
    for kind in ("cat", "dog", "horse"):
        assert [kind, "20", "8"] in [line.split() for line in said.splitlines()]
    tally["the folders' own classes and pictures"] += 1


def test_a_slice_of_a_folder_has_every_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tally: Counter[str]
) -> None:
    """`train[:80%]` is trained on and `train[80%:]` held out: a fifth of each class, and not the last class alone."""
    pictures(tmp_path / "in/train", cat=20, dog=20, horse=20)
    summary = trained(tmp_path, **of_folder(tmp_path / "in", "train[:80%]", "train[80%:]", batch_size=16))
    assert summary["test_examples"] == 12
    assert "has no example" not in capsys.readouterr().err
    trained(tmp_path / "b", **of_folder(tmp_path / "in", "train[:57]", "train[-2:]"))
    assert "split 'train[-2:]' of folder(size=16) has no example of 1 of 3 classes: " in capsys.readouterr().err
    tally["each class in both"] += 1


@pytest.mark.parametrize(
    ("train", "held_out", "both"),
    [
        ("train", "test", 0),
        ("train", "train[80%:]", 12),  # the other half of the command was forgotten
        ("train[:80%]", "train[80%:]", 0),
        ("train[:50]+test[:5]", "train[45:]+test", 10),
        ("paper_train", "train", 0),
    ],
)
def test_examples_that_are_trained_on_and_held_out(train: str, held_out: str, both: int) -> None:
    assert shared(train, held_out, Info("d", 3, (8, 8, 1), {"train": 60, "test": 10}, "")) == both


@pytest.mark.slow
def test_an_evaluation_on_what_was_trained_on_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tally: Counter[str]
) -> None:
    trained(tmp_path, eval_split="train[300:]")
    assert "warning: 20 of the examples of eval_split='train[300:]' are in train_split='train[:320]'" in (
        capsys.readouterr().err
    )
    tally["said in a line"] += 1


@pytest.mark.parametrize("name", ["x.png", pytest.param("more", marks=pytest.mark.slow)])
def test_a_link_to_what_is_not_mounted(name: str, tmp_path: Path, tally: Counter[str]) -> None:
    """Exit 2 and the link named, or left out and counted: storage did not fail."""
    pictures(tmp_path / "in", cat=40, dog=40)
    (tmp_path / "in/dog" / name).symlink_to("/not-mounted/dog")
    said = mistake(tmp_path, **of_folder(tmp_path / "in"))
    assert f"dog/{name} is not a readable picture: it is a link to /not-mounted/dog, which is not there" in said
    summary = trained(tmp_path / "b", bad_records="skip", **of_folder(tmp_path / "in"))
    assert sum(summary["bad_records"].values()) == 1
    tally["exit 2, or left out and counted"] += 1


def test_what_is_transparent(tmp_path: Path, capsys: pytest.CaptureFixture[str], tally: Counter[str]) -> None:
    """Black shapes on a transparent ground are told apart, and how many there are stands in the summary."""
    for kind, box in (("bar", (1, 6, 14, 8)), ("square", (5, 5, 10, 10))):
        (tmp_path / "in" / kind).mkdir(parents=True)
        for i in range(40):
            icon = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
            icon.paste((0, 0, 0, 255), tuple(a + i % 2 for a in box))  # pyright: ignore[reportArgumentType]
            icon.save(tmp_path / "in" / kind / f"{i}.png")
    summary = trained(
        tmp_path,
        **of_folder(tmp_path / "in", epochs=40, preprocess=("mean()", "scale()")),
        eval_every_epochs=40,
        checkpoint_every_epochs=40,
    )
    assert summary["test_error_pct"] == 0
    assert summary["pictures"]["transparent"] == 80
    assert "80 transparent (laid on white)" in capsys.readouterr().err
    tally["laid on white and counted"] += 1


def test_an_undecodable_picture_in_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tally: Counter[str]
) -> None:
    """Through the command, twice, the second time from the cache: counted and left out; and named with "stop"."""
    root = tmp_path / "pets"
    for kind in ("cat", "dog"):
        (root / kind).mkdir(parents=True)
        for i in range(60):
            Image.new("RGB", (20, 20), (i, 200 * (kind == "dog"), 9)).save(root / kind / f"{i}.png")
    for name in ("cat/7.png", "dog/9.png"):
        (root / name).write_bytes((root / name).read_bytes()[:50])
    folder = {"dataset": "folder(size=16)", "data_dir": root, "train_split": "train", "eval_split": "test"}
    assert "7.png is not a readable picture" in (said := mistake(tmp_path, **folder)) or "9.png is not" in said
    for start in ("a", "b"):
        summary = trained(tmp_path / start, bad_records="skip", **folder)
        assert sum(summary["bad_records"].values()) == 2
        assert "2 of " in (err := capsys.readouterr().err) or err.count("1 of ") >= 2
    assert "could not be read" in mistake(tmp_path / "c", **folder)
    tally["exit 2 or left out and counted, also from the cache"] += 3
