"""Damaged checkpoints, every file of the layout: what comes back is the newest good step, or a line and exit code 2."""

from __future__ import annotations

import errno
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from nin_jax import main, storage
from nin_jax.devices.mesh import host, make_mesh, replicated_like
from nin_jax.errors import StorageFailed, UserError
from nin_jax.runs import checkpoint
from nin_jax.runs.checkpoint import Checkpoints, checksums
from nin_jax.training.build import Run
from nin_jax.training.state import init_state
from tests.faults import harness

pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"  # orbax's reads that come back late
)


def truncate(file: Path, luck: random.Random) -> None:
    size = file.stat().st_size
    with open(file, "r+b") as f:
        f.truncate(luck.randrange(size) if size else 0)


def empty(file: Path, luck: random.Random) -> None:
    file.write_bytes(b"")


def flip_a_bit(file: Path, luck: random.Random) -> None:
    content = bytearray(file.read_bytes() or b"\0")
    content[luck.randrange(len(content))] ^= 1 << luck.randrange(8)
    file.write_bytes(content)


def remove(file: Path, luck: random.Random) -> None:
    file.unlink()


def foreign(file: Path, luck: random.Random) -> None:
    """Bytes of something else, as long as they were."""
    file.write_bytes(luck.randbytes(max(file.stat().st_size, 64)))


def append(file: Path, luck: random.Random) -> None:
    with open(file, "ab") as f:
        f.write(luck.randbytes(luck.randrange(1, 500)))


def newer(file: Path, luck: random.Random) -> None:
    """JSON of a version to come: other keys, other types; other files get a later format number, which is a flipped bit."""
    try:
        content = json.loads(file.read_text())
    except ValueError:
        return flip_a_bit(file, luck)
    change = luck.choice(["add", "list", "rename", "version"])
    if change == "list" or not isinstance(content, dict) or not content:
        content = [content]
    elif change == "add":
        content["format_version"] = 99
    elif change == "rename":
        key = luck.choice(sorted(content))
        content[f"{key}_v2"] = content.pop(key)
    else:
        content = {"version": 99, "content": content}
    file.write_text(json.dumps(content))
    return None


HARMS: list[Callable[[Path, random.Random], None]] = [truncate, empty, flip_a_bit, remove, foreign, append, newer]


@pytest.fixture(scope="module")
def original(calm: Path) -> tuple[Path, Any, dict[int, dict[str, str]]]:
    """A run directory with checkpoints of steps 10, 20, 30 and 40, what a restore needs, and every array's checksum."""
    workdir = calm
    run = Run(main.parse(["nin_jax", *harness.words(workdir)]).config)
    shapes = jax.eval_shape(lambda: init_state(run.recipe(10), 0, run.info.image_shape))
    like = replicated_like(shapes, make_mesh())
    sums = {number: harness.saved_checksums(workdir, number) for number in harness.steps(workdir)}
    assert list(sums) == [10, 20, 30, 40]
    return workdir, like, sums


def test_damaged_checkpoints(
    original: tuple[Path, Any, dict[int, dict[str, str]]],
    tmp_path: Path,
    luck: random.Random,
    tally: Counter[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """200 in a campaign: any file of the newest steps, at a random offset. Never a wrong array, never a step too old.

    Where the harm does no harm (orbax has files it never reads), the newest step comes back as it was.
    """
    workdir, like, sums = original
    for case in range(200 if harness.FULL else 15):
        copy = tmp_path / str(case)
        shutil.copytree(workdir, copy)
        hurt = sorted(sums)[-luck.choice([1, 1, 2]) :]
        done = []
        for number in hurt:
            files = sorted(f for f in (copy / "checkpoints" / str(number)).rglob("*") if f.is_file())
            file, harm = luck.choice(files), luck.choice(HARMS)
            harm(file, luck)
            done.append(f"{harm.__name__} {file.relative_to(copy)}")
        capsys.readouterr()
        checkpoints = Checkpoints(copy)
        found = checkpoints.restore(like)
        checkpoints.close()
        said = capsys.readouterr().err
        assert found is not None, done
        number, state, _ = found
        assert checksums(state) == sums[number], (done, said)
        for newer_step in (n for n in sums if n > number):  # stepped over: it was hurt, a line says so, it is set aside
            assert newer_step in hurt, (done, said)
            assert f"checkpoints/{newer_step} is broken" in said, (done, said)
            assert (copy / "checkpoints" / f"broken-{newer_step}").is_dir(), done
        assert "Traceback" not in said, said
        for good in (n for n in sums if n <= number):
            assert (copy / "checkpoints" / str(good)).is_dir(), done
        tally["the newest good step, one line for each broken" if number < 40 else "the step itself: no harm done"] += 1
        shutil.rmtree(copy)


@pytest.mark.slow
def test_damaged_checkpoints_by_the_command(
    original: tuple[Path, Any, dict[int, dict[str, str]]], tmp_path: Path, luck: random.Random, tally: Counter[str]
) -> None:
    """The same through the command, which goes on from the newest good step to the same end, without a traceback."""
    workdir, _, _ = original
    for case in range(12 if harness.FULL else 1):
        copy = tmp_path / str(case)
        shutil.copytree(workdir, copy)
        (copy / "summary.json").unlink()
        files = sorted(f for f in (copy / "checkpoints" / "40" / "state" / "d").rglob("*") if f.is_file())
        for file in files:
            luck.choice([truncate, empty, flip_a_bit, foreign])(file, luck)
        ended = harness.run(harness.words(copy))
        assert ended.code == 0, ended.err
        assert ended.clean(), ended.err
        stepped_back = "checkpoints/40 is broken" in ended.err and "going back to step 30" in ended.err
        assert stepped_back or len(files) == 1, ended.err
        harness.assert_same_run(copy, workdir)
        tally["one line, then bit-equal"] += 1


@pytest.mark.parametrize("text", ["[1]", "[" * 100_000, '{"crc32": 1, "content": []}'], ids=["list", "deep", "type"])
@pytest.mark.parametrize("read_only", [True, False])
def test_a_checkpoint_that_cannot_even_be_listed(
    text: str, read_only: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The notes of one are damaged beyond parsing; that one is stepped over, the others are used."""
    checkpoints = Checkpoints(tmp_path, keep=9)
    for number in (1, 2):
        checkpoints.save(number, {"w": jax.numpy.arange(3.0) + number}, {})
    checkpoints.close()
    (tmp_path / "checkpoints" / "2" / "notes.json").write_text(text)
    like = replicated_like({"w": jax.numpy.arange(3.0)}, make_mesh())
    checkpoints = Checkpoints(tmp_path, read_only=read_only)
    found = checkpoints.restore(like)
    checkpoints.close()
    assert found is not None
    assert (found[0], host(found[1]["w"]).tolist()) == (1, [1, 2, 3])
    assert capsys.readouterr().err.count("checkpoints/2 is broken") == 1
    assert (tmp_path / "checkpoints" / ("2" if read_only else "broken-2")).is_dir()


@pytest.mark.parametrize(("number", "attempts"), [(errno.ESTALE, 2), (errno.EACCES, 99)])
def test_a_checkpoint_that_cannot_be_read_now_is_not_broken(
    number: int, attempts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network file system that falters is asked again; a missing right is a line; the checkpoint stays where it is."""
    monkeypatch.setattr(storage, "RETRY_AFTER", (0.0, 0.0))
    state = {"w": jax.numpy.arange(3.0)}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(7, state, {}, wait=True)
    real, left = checkpoint.verified_notes, [attempts]

    def falters(folder: Path) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(number, "no")
        return real(folder)

    monkeypatch.setattr(checkpoint, "verified_notes", falters)
    like = replicated_like(state, make_mesh())
    if number == errno.EACCES:
        with pytest.raises(StorageFailed, match=r"cannot read checkpoint .*/7: "):
            checkpoints.restore(like)
    else:
        found = checkpoints.restore(like)
        assert found is not None
        assert found[0] == 7
    assert checkpoints.steps() == [7]


def test_only_what_was_read_back_is_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save in the background whose files are damaged on the way leaves the one before, though one alone is kept."""
    monkeypatch.setattr(storage, "RETRY_AFTER", ())
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, {"w": jax.numpy.arange(3.0)}, {}, wait=True)
    real = checkpoint.ocp.Checkpointer.save

    def save(self: Any, directory: Path, **options: Any) -> None:
        real(self, directory, **options)
        for file in (directory / "d").iterdir():
            file.write_bytes(bytes(file.stat().st_size))

    monkeypatch.setattr(checkpoint.ocp.Checkpointer, "save", save)
    checkpoints.save(2, {"w": jax.numpy.arange(3.0)}, {})
    with pytest.raises(StorageFailed, match=r"cannot write checkpoint .*/2: "):
        checkpoints.wait()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["1"]


def test_a_checkpoint_of_another_run(original: tuple[Path, Any, dict[int, dict[str, str]]], tmp_path: Path) -> None:
    """Of the same network, but another seed, in place of the newest: its own notes tell, and nothing is touched."""
    workdir, _, _ = original
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    (copy / "summary.json").unlink()
    (copy / "config.json").unlink()
    before = {f: f.read_bytes() for f in (copy / "checkpoints").rglob("*") if f.is_file()}
    command = main.parse(["nin_jax", *harness.words(copy, seed=7)])
    with pytest.raises(UserError, match=r"checkpoint 40 in .* of another config \(seed: 0, now 7\)"):
        main.run(command)
    assert before == {f: f.read_bytes() for f in (copy / "checkpoints").rglob("*") if f.is_file()}


def test_training_data_that_changed(original: tuple[Path, Any, dict[int, dict[str, str]]], tmp_path: Path) -> None:
    """A run does not go on, on other examples than it began with."""
    workdir, _, _ = original
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    (copy / "summary.json").unlink()
    command = main.parse(["nin_jax", *harness.words(copy)])
    with pytest.MonkeyPatch.context() as patch:
        real = Run.load

        def load(run: Run, split: str) -> Any:
            images, labels = real(run, split)
            return images, np.roll(labels, 1)

        patch.setattr(Run, "load", load)
        with pytest.raises(UserError, match="a run on other training examples"):
            main.run(command)


def test_pixels_that_changed_are_said(
    original: tuple[Path, Any, dict[int, dict[str, str]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pictures were edited, or are decoded otherwise; the labels are the same."""
    copy = tmp_path / "run"
    shutil.copytree(original[0], copy)
    (copy / "summary.json").unlink()
    command = main.parse(["nin_jax", *harness.words(copy)])
    main.run(command)
    assert "the pixels of" not in capsys.readouterr().err
    (copy / "summary.json").unlink()
    with pytest.MonkeyPatch.context() as patch:
        real = Run.load
        patch.setattr(
            Run, "load", lambda run, split: (lambda images, labels: (255 - images, labels))(*real(run, split))
        )
        main.run(command)
    assert "warning: the pixels of training images have changed since the checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "config.json cannot be read"),
        ("[1]", "config.json cannot be read"),
        ("[" * 100_000, "config.json cannot be read"),
        ('{"model": {"name": "no_such"}}', "of another config"),
    ],
    ids=["empty", "list", "deep", "tampered"],
)
def test_a_tampered_config(text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line and exit code 2, in both modes; and nothing is written over it."""
    workdir = tmp_path / "run"
    (workdir / "checkpoints").mkdir(parents=True)
    (workdir / "metrics.jsonl").write_text("{}\n")
    (workdir / "config.json").write_text(text)
    for mode in ("train", "eval"):
        with pytest.raises(SystemExit) as caught:
            main.main(["nin_jax", *harness.words(workdir), f"--mode={mode}"])
        assert caught.value.code == 2
        line = capsys.readouterr().err
        assert line.startswith("nin_jax: ")
        assert line.count("\n") == 1
        assert said in line or mode == "eval"
    assert (workdir / "config.json").read_text() == text
