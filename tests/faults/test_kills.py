"""kill -9 and signals at any moment: what is started again is the very same run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from nin_jax.devices.signals import STOPPING
from tests.faults import harness

# Function and highest call that a kill may wait for, and how many seconds after it began the kill comes at the latest.
PHASES: dict[str, tuple[str, int, float]] = {
    "load": ("nin_jax.training.build:Run.load", 2, 0.0),
    "compile": ("nin_jax.training.programs:compile_replicas", 2, 0.5),
    "restore": ("nin_jax.runs.checkpoint:Checkpoints.restore", 1, 0.1),
    "train": ("nin_jax.training.loop:Event.AFTER_UPDATES", 30, 0.01),
    "evaluate": ("nin_jax.training.evaluate:Evaluator.__call__", 3, 0.02),
    "row": ("nin_jax.runs.record:Record.write", 6, 0.005),
    "save": ("nin_jax.runs.checkpoint:Checkpoints.save", 3, 0.15),
    "final write": ("nin_jax.training.loop:Event.BEFORE_SUMMARY", 1, 0.02),
}
LONGER = {"epochs": 12, "schedule.boundaries_epochs": (8,)}  # so that a run outlives some kills


@pytest.fixture(scope="module")
def longer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """An undisturbed run to compare with, and the seconds it took."""
    workdir = tmp_path_factory.mktemp("longer") / "run"
    began = time.monotonic()
    ended = harness.run(harness.words(workdir, **LONGER))
    assert ended.code == 0, ended.err
    return workdir, time.monotonic() - began


def kill_at_a_moment(arguments: list[str], seconds: float) -> bool:
    """Starts the command and kills it from outside; whether it was still running."""
    process = harness.start(arguments)
    try:
        _, err = process.communicate(timeout=seconds)
        assert process.returncode == 0, err
        return False
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return True


def kill_in_a_phase(arguments: list[str], phase: str, luck: random.Random) -> bool:
    """Starts the command, which kills itself in a phase; whether it came to that."""
    at, calls, after = PHASES[phase]
    hook = {"at": at, "call": luck.randint(1, calls), "do": "signal", "number": 9, "after": luck.uniform(0, after)}
    ended = harness.run(arguments, hook)
    assert ended.code in (0, -9), ended.err
    return ended.code == -9


def chain(workdir: Path, calm: tuple[Path, float], seed: int, kills: int) -> Counter[str]:
    """Kills one run again and again, until it has had enough or comes through; then lets it end and compares."""
    luck, counts = random.Random(seed), Counter[str]()
    arguments = harness.words(workdir, **LONGER)
    while counts.total() < kills and not (workdir / "summary.json").exists():
        phase = luck.choice(["at a random moment", *PHASES])
        if phase in PHASES:
            killed = kill_in_a_phase(arguments, phase, luck)
        else:
            killed = kill_at_a_moment(arguments, luck.uniform(0.1, 1.0) * calm[1])
        counts[phase] += killed
    harness.assert_resumes(workdir, calm[0], **LONGER)
    return counts


@pytest.mark.slow
def test_kill_9(tmp_path: Path, longer: tuple[Path, float], luck: random.Random, tally: Counter[str]) -> None:
    """100 kills in a campaign, by the clock and in every phase: each start goes on, and every run ends bit-equal."""
    wanted, at_once = (int(os.environ.get("NIN_JAX_FAULTS_KILLS", 100)), 10) if harness.FULL else (3, 3)

    def one(number: int) -> Counter[str]:
        return chain(tmp_path / str(number), longer, luck.randrange(10**6), at_once)

    number = kills = 0
    with ThreadPoolExecutor(2) as pool:
        while kills < wanted:
            number += 2 if harness.FULL else 1
            runs = range(number - 2, number) if harness.FULL else range(1)
            for counts in pool.map(one, runs):
                tally.update({f"killed: {phase}": n for phase, n in counts.items()})
                tally["runs that ended bit-equal"] += 1
                kills += counts.total()
            if not harness.FULL:
                break


SIGNALLED = {"start": (), **PHASES}


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(lines["SigCgt"], 16) >> (number - 1) & 1)


def signalled(workdir: Path, phase: str, number: int, times: int) -> harness.Ended:
    """A command that gets a signal in a phase, once or twice in a row."""
    arguments = harness.words(workdir)
    if phase == "start":  # main is imported, jax and the rest are not
        process = harness.start(arguments)
        # The last of them: Python itself catches SIGINT, and earlier.
        while process.poll() is None and not catches(process.pid, STOPPING[-1]):
            time.sleep(0.005)
        for _ in range(times):
            process.send_signal(number)
            time.sleep(0.02)
        return harness.finish(process)
    at, calls, _ = PHASES[phase]
    call = {"train": 13, "save": 2, "row": 3, "evaluate": 2}.get(phase, 1)
    assert call <= calls
    hook: dict[str, Any] = {"at": at, "call": call, "do": "signal", "number": number, "times": times}
    return harness.run(arguments, hook)


QUICK = [
    ("start", signal.SIGHUP, 1),
    ("train", signal.SIGINT, 2),
    ("save", signal.SIGUSR2, 2),
    ("evaluate", signal.SIGUSR1, 1),
]
ALL = [(phase, number, times) for phase in SIGNALLED for number in STOPPING for times in (1, 2)]


@pytest.mark.slow
@pytest.mark.usefixtures("hangups")
@pytest.mark.parametrize(
    ("phase", "number", "times"), ALL if harness.FULL else QUICK, ids=lambda v: str(getattr(v, "name", v))
)
def test_signals(phase: str, number: int, times: int, tmp_path: Path, calm: Path, tally: Counter[str]) -> None:
    """Each signal of `STOPPING` in each phase, once and twice: exit 75 with one line, and the run goes on bit for bit.

    After the last update nothing is left to stop, and the command may as well end well.
    """
    ended = signalled(tmp_path / "run", phase, number, times)
    assert ended.code in ((0, 75) if phase == "final write" else (75,)), ended.err
    assert ended.clean(), ended.err
    if ended.code == 75:
        assert ended.last.startswith(f"nin_jax: {signal.Signals(number).name}"), ended.err
    harness.assert_resumes(tmp_path / "run", calm)
    tally[f"exit {ended.code}, then bit-equal"] += 1


@pytest.mark.slow
def test_a_second_ctrl_c_does_not_wait(tmp_path: Path, calm: Path, tally: Counter[str]) -> None:
    """Storage hangs in a save: the first Ctrl-C waits for it, the second one ends the command."""
    began = {"at": PHASES["train"][0], "call": 13, "do": "signal", "number": signal.SIGINT}
    hangs = {"at": "nin_jax.runs.checkpoint:_write", "call": 1, "do": "hang"}
    again = {"at": "nin_jax.training.loop:Event.BEFORE_SAVE", "call": 2, "do": "signal", "number": signal.SIGINT}
    ended = harness.finish(harness.start(harness.words(tmp_path), began, hangs, again | {"after": 1.0}))
    assert ended.code == 75, ended.err
    assert ended.clean(), ended.err
    assert ended.last.startswith("nin_jax: SIGINT: ended at once, without saving"), ended.err
    harness.assert_resumes(tmp_path, calm)
    tally["exit 75, then bit-equal"] += 1


@pytest.mark.slow
def test_nohup(tmp_path: Path, calm: Path, tally: Counter[str]) -> None:
    """SIGHUP that is ignored when the command starts, as nohup has it, stays so: the run goes to its end."""
    hook = {"at": PHASES["row"][0], "call": 2, "do": "signal", "number": signal.SIGHUP}
    ended = harness.run(harness.words(tmp_path), hook, prefix=["sh", "-c", 'trap "" HUP; exec "$@"', "sh"])
    assert ended.code == 0, ended.err
    harness.assert_same_run(tmp_path, calm)
    tally["exit 0, bit-equal"] += 1
