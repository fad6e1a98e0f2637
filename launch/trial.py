"""Trials of a sweep: each is `nin_jax.main` in a run directory of its own, started or resumed until it has ended."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from launch import processes
from nin_jax import storage
from nin_jax.errors import Preempted

MOST_RESTARTS = 10  # of a trial that keeps being interrupted

Row = dict[str, Any]  # of metrics.jsonl


class Trial(NamedTuple):
    """One run of a sweep.

    Attributes:
      name: its directory below that of the sweep.
      flags: the flags of `nin_jax.main` that set it apart, by name: {"config.model.head": "fc", "config.seed": 0}.
      common: the flags that all trials share: ["--config=experiments/digits.py"].
    """

    name: str
    flags: Mapping[str, Any]
    common: Sequence[str] = ()

    def words(self) -> list[str]:
        """Its command line without the command and the run directory."""
        return [*self.common, *(f"--{key}={value}" for key, value in self.flags.items())]

    def workdir(self, directory: Path) -> Path:
        """Its run directory in a sweep's directory."""
        return directory / "runs" / self.name

    def arguments(self, directory: Path) -> list[str]:
        """Its command line without the command."""
        return [f"--workdir={self.workdir(directory)}", *self.words()]


class Process:
    """A running trial.

    `poll` must be called now and then: it restarts an interrupted trial, and returns the exit code once it has ended. It
    waits for a run directory that another process still holds, such as one left by a killed sweep.
    """

    def __init__(self, trial: Trial, directory: Path, env: Mapping[str, str]):
        self.trial, self.directory, self.env = trial, directory, env
        self.workdir = trial.workdir(directory)
        self.process: subprocess.Popen | None = None
        self.stopped, self.restarts, self.rows_seen = False, 0, 0

    def poll(self) -> int | None:
        if self.process is None:
            if self.stopped:
                return Preempted.exit_code
            if not held(self.workdir):
                line = [*processes.MAIN, *self.trial.arguments(self.directory)]
                self.process = processes.start(line, self.env, self.workdir / "logs" / "process-0.log")
            return None
        code = self.process.poll()
        if code is None or (code >= 0 and code != Preempted.exit_code):
            return code
        if self.stopped or self.restarts == MOST_RESTARTS:
            return Preempted.exit_code
        self.process, self.restarts = None, self.restarts + 1
        return None

    def new_rows(self) -> list[Row]:
        """The rows of its record since the last call; the first call returns those of earlier starts too."""
        new = rows(self.workdir)[self.rows_seen :]
        self.rows_seen += len(new)
        return new

    def stop(self) -> None:
        """Asks it to save a checkpoint and exit."""
        self.stopped = True
        if self.process is not None:
            self.process.terminate()


def run(
    plan: Sequence[Trial],
    directory: Path,
    slots: Sequence[Mapping[str, str]] = ({},),
    on_change: Callable[[], None] = lambda: None,
    on_row: Callable[[Row], bool] | None = None,
) -> list[int]:
    """Runs trials to their end, one per slot, the next one when a slot is free; returns their exit codes.

    Args:
      plan: the trials.
      directory: that of the sweep.
      slots: what each slot adds to the environment, such as the GPU that it stands for.
      on_change: called when a trial has ended.
      on_row: called with each row of a trial's record; returning True stops the trial.
    """
    codes: dict[int, int] = {}
    waiting, free = list(enumerate(plan)), list(slots)
    running: dict[int, Process] = {}
    with processes.Relay(lambda: [p.process for p in running.values() if p.process]) as relay:
        while running or (waiting and not relay.requested):
            while waiting and free and not relay.requested:
                number, trial = waiting.pop(0)
                running[number] = Process(trial, directory, free.pop(0))
            for number, process in list(running.items()):
                process.stopped = process.stopped or relay.requested
                code = process.poll()
                if relay.requested and not process.stopped:  # it was being started: the relay did not know it yet
                    process.stop()
                if on_row:
                    for row in process.new_rows():
                        if on_row(row):
                            process.stop()
                if code is not None:
                    codes[number] = code
                    free.append(running.pop(number).env)
                    on_change()
            time.sleep(0.1)
    return [codes.get(number, Preempted.exit_code) for number in range(len(plan))]


def rows(workdir: Path) -> list[Row]:
    """The record of a run so far; half a line at its end is left out."""
    found = []
    with contextlib.suppress(OSError, ValueError):
        for line in (workdir / "metrics.jsonl").read_text().splitlines():
            found.append(json.loads(line))
    return found


def summary(workdir: Path) -> dict[str, Any]:
    """The summary of a run that is done or has diverged; empty for another."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads((workdir / "summary.json").read_text())
    return {}


def is_over(workdir: Path) -> bool:
    """Whether a run is done or has diverged, so that starting it again would change nothing."""
    return summary(workdir).get("status") in ("done", "diverged")


def last_line(workdir: Path) -> str:
    """The last line of a run's output."""
    with contextlib.suppress(OSError, IndexError):
        lines = (workdir / "logs" / "process-0.log").read_text(errors="replace").splitlines()
        return [line for line in lines if line.strip()][-1]
    return "it printed nothing"


def held(workdir: Path) -> bool:
    """Whether a live process has this run directory."""
    try:
        with storage.lock(workdir / ".lock"):
            return False
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
