"""Storage that is full, read-only, slow, gone, or written by two: exit 74 and one line, and every checkpoint before is good."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import pytest

from nin_jax import storage
from nin_jax.errors import StorageFailed, UserError
from nin_jax.runs import checkpoint
from nin_jax.runs.record import Record
from tests.faults import harness

# A small file system of the command's own at $2 of $1 KiB, which begins as $3 and is copied there in the end.
SMALL_DISK = (
    'mount -t tmpfs -o size="$1"k none "$2" && cp -a "$3/." "$2/" && out="$3" && disk="$2" && shift 3 && '
    '{ "$@"; code=$?; cp -a "$disk/." "$out/"; exit $code; }'
)
READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && shift && exec "$@"'


def small_disk(kib: int, tmp_path: Path) -> tuple[list[str], Path, Path]:
    """Prefix of a command that has a disk of so many KiB, the directory in it, and where the content is afterwards."""
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    disk.mkdir(exist_ok=True)
    copy.mkdir(exist_ok=True)
    prefix = harness.own_mounts(SMALL_DISK, str(kib), str(disk), str(copy))
    if prefix is None:
        pytest.skip("no mounts of one's own are allowed here; the injected errors below are what is tested")
    return prefix, disk / "run", copy / "run"


@pytest.mark.slow
def test_a_full_disk(tmp_path: Path, calm: Path, luck: random.Random, tally: Counter[str]) -> None:
    """A real one, that is full at a random moment: exit 74, one line, nothing half-written; with room it goes on."""
    whole = sum(f.stat().st_size for f in calm.rglob("*") if f.is_file()) // 1024
    for case in range(10 if harness.FULL else 1):
        (tmp_path / str(case)).mkdir()
        kib = luck.randrange(20, whole) if harness.FULL else whole
        prefix, workdir, copy = small_disk(kib, tmp_path / str(case))
        ended = harness.run(harness.words(workdir), prefix=prefix)
        assert ended.code in (0, 74), ended.err
        assert ended.clean(), ended.err
        if ended.code:
            assert ended.last.startswith("nin_jax: "), ended.err
            assert "No space left" in ended.last, ended.err
            assert not list(copy.glob(".*.tmp")) + list(copy.glob(".config*")), list(copy.iterdir())
        harness.assert_resumes(copy, calm)
        tally["exit 74, then bit-equal" if ended.code else "it was large enough"] += 1
    assert tally["exit 74, then bit-equal"]


def test_a_read_only_workdir(tmp_path: Path, calm: Path, tally: Counter[str]) -> None:
    """Exit 74 and one line, and nothing is lost; evaluation needs no right to write."""
    workdir = tmp_path / "run"
    shutil.copytree(calm, workdir)
    (workdir / "summary.json").unlink()
    prefix = harness.own_mounts(READ_ONLY, str(workdir))
    if prefix is None:
        pytest.skip("no mounts of one's own are allowed here")
    ended = harness.run(harness.words(workdir), prefix=prefix)
    assert ended.code == 74, ended.err
    assert ended.err.count("\n") == 1
    assert "Read-only file system" in ended.err
    if harness.FULL:
        ended = harness.run([*harness.words(workdir), "--mode=eval"], prefix=prefix)
        assert ended.code == 0, ended.err
        assert json.loads(ended.out)["error_pct"] == harness.rows(calm)[-1]["error_pct"]
    tally["exit 74, nothing lost"] += 1


@pytest.mark.parametrize("do", ["remove", "move"])
def test_a_workdir_that_goes(do: str, tmp_path: Path, calm: Path, tally: Counter[str]) -> None:
    """Deleted or renamed in mid-run: exit 74 and one line at the next row, not hours of training into nowhere."""
    if do == "move" and not harness.FULL:
        pytest.skip("in the campaign")
    workdir = tmp_path / "run"
    ended = harness.run(
        harness.words(workdir),
        {"at": "nin_jax.training.loop:Event.AFTER_UPDATES", "call": 15, "do": do, "path": str(workdir)},
    )
    assert ended.code == 74, ended.err
    assert ended.clean(), ended.err
    assert "was deleted, moved or replaced" in ended.last, ended.err
    if do == "move":
        harness.assert_resumes(Path(f"{workdir}.moved"), calm)
    tally["exit 74"] += 1


@pytest.mark.skipif(not harness.FULL, reason="in the campaign")
@pytest.mark.parametrize("by", [-864_000.0, 864_000.0])
def test_a_clock_that_jumps(by: float, tmp_path: Path, calm: Path, tally: Counter[str]) -> None:
    """Ten days back or forth in mid-run: the same run."""
    workdir = tmp_path / "run"
    jump = {"at": "nin_jax.training.loop:Event.AFTER_UPDATES", "call": 15, "do": "clock", "by": by}
    ended = harness.run(harness.words(workdir), jump)
    assert ended.code == 0, ended.err
    harness.assert_same_run(workdir, calm)
    assert 0 < json.loads((workdir / "summary.json").read_text())["train_seconds"] < 1000
    tally["bit-equal"] += 1


@pytest.mark.slow
def test_two_writers(tmp_path: Path, calm: Path, tally: Counter[str]) -> None:
    """The second is refused while the first lives; a kill -9 of the first leaves no lock behind."""
    workdir = tmp_path / "run"
    first = harness.start(
        harness.words(workdir), {"at": "nin_jax.training.loop:Event.AFTER_UPDATES", "call": 15, "do": "hang"}
    )
    try:
        until = time.monotonic() + harness.SECONDS
        while not (workdir / "checkpoints" / "10").is_dir():
            assert time.monotonic() < until
            assert first.poll() is None
            time.sleep(0.1)
        second = harness.run(harness.words(workdir))
        assert second.code == 2, second.err
        assert "is in use by a live process" in second.last
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    harness.assert_resumes(workdir, calm)
    tally["exit 2; after the kill bit-equal"] += 1


@pytest.mark.parametrize(
    ("at", "call"),
    [
        ("nin_jax.runs.checkpoint:ocp.Checkpointer.save", 2),
        ("os:fsync", 3),
        ("os:fsync", 6),
    ],
)
@pytest.mark.skipif(not harness.FULL, reason="in the campaign")
def test_storage_that_falters(at: str, call: int, tmp_path: Path, calm: Path, tally: Counter[str]) -> None:
    """An error that passes costs a pause and nothing else: the same run."""
    workdir = tmp_path / "run"
    ended = harness.run(harness.words(workdir), {"at": at, "call": call, "do": "raise", "errno": errno.EIO, "times": 2})
    assert ended.code == 0, ended.err
    harness.assert_same_run(workdir, calm)
    tally["tried again; bit-equal"] += 1


def test_what_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors that may pass, after each of the pauses; others at once."""
    pauses: list[float] = []
    monkeypatch.setattr(storage.time, "sleep", pauses.append)
    calls = 0

    def write(number: int, times: int) -> str:
        nonlocal calls
        calls += 1
        if calls <= times:
            raise OSError(number, "no")
        return "written"

    assert storage.persist("x", lambda: write(errno.EIO, 3)) == "written"
    assert tuple(pauses) == storage.RETRY_AFTER
    for number, attempts in ((errno.ENOSPC, 4), (errno.EROFS, 1)):
        calls = 0
        with pytest.raises(StorageFailed, match="cannot write x"):
            storage.persist("x", lambda number=number: write(number, 99))
        assert calls == attempts


def test_a_save_in_the_background_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The next one says so, does not go to the background, and is tried again; in the end the newest is on disk."""
    monkeypatch.setattr(storage, "RETRY_AFTER", (0.0,))
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=9)
    state = {"w": jax.numpy.arange(3.0)}
    checkpoints.save(1, state, {})
    checkpoints.wait()
    real, fails = checkpoint.ocp.Checkpointer.save, [3]

    def save(*arguments: Any, **options: Any) -> None:
        real(*arguments, **options)
        if fails[0]:
            fails[0] -= 1
            raise ValueError("RESOURCE_EXHAUSTED: No space left on device")

    monkeypatch.setattr(checkpoint.ocp.Checkpointer, "save", save)
    checkpoints.save(2, state, {})  # twice in vain
    checkpoints.save(3, state, {})  # once
    assert "No space left on device; trying again with step 3" in capsys.readouterr().err
    assert harness.steps(tmp_path) == [1, 3]
    checkpoints.close()
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"1", "3"}


def test_a_row_that_cannot_be_written_at_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried again and stands there once."""
    monkeypatch.setattr(storage, "RETRY_AFTER", (0.0, 0.0))
    record = Record(tmp_path, 0)
    real, fails = os.fsync, [2]

    def fsync(number: int) -> None:
        if fails[0]:
            fails[0] -= 1
            raise OSError(errno.EIO, "Input/output error")
        real(number)

    monkeypatch.setattr(os, "fsync", fsync)
    record.write({"step": 1, "epoch": 1, "split": "train", "loss": 0.5})
    record.close()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


def test_a_whole_file_or_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in the middle of writing leaves the old file and nothing else."""
    monkeypatch.setattr(storage, "RETRY_AFTER", ())
    file = tmp_path / "summary.json"
    storage.write_json(file, {"a": 1})

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(StorageFailed, match=r"summary\.json: .*No space left"):
        storage.write_json(file, {"a": 2})
    assert json.loads(file.read_text()) == {"a": 1}
    assert [f.name for f in tmp_path.iterdir()] == ["summary.json"]


def test_a_place_where_nothing_can_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder, not a file"):
        storage.write_whole(tmp_path, "text")
    os.mkfifo(tmp_path / "pipe")  # stands for /dev/null, which root could replace by a file
    with pytest.raises(UserError, match="is a pipe or a device, not a file"):
        storage.write_whole(tmp_path / "pipe", "text")
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "file").touch()
    with pytest.raises(StorageFailed, match=r"cannot write .*file"):
        storage.make_folder(tmp_path / "file" / "folder")
    storage.make_folder(tmp_path / "a" / "b")
    storage.make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
