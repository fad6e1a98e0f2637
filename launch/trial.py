"""One run of a sweep: `nin_jax.main` in a directory of its own, until it has ended, wherever it was when it began."""

from __future__ import annotations

import contextlib
import fcntl
import json
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from launch import processes
from nin_jax.errors import Preempted

Row = dict[str, Any]  # of metrics.jsonl


class Trial(NamedTuple):
    """What a run of a sweep is.

    Attributes:
      name: its directory below that of the sweep.
      flags: of `nin_jax.main`, by name, that set it apart: {"config.model.head": "fc", "config.seed": 0}.
      common: flags that all of the sweep have: ["--config=experiments/digits.py"].
    """

    name: str
    flags: Mapping[str, Any]
    common: Sequence[str] = ()

    def arguments(self, directory: Path) -> list[str]:
        """The command line, without the command."""
        own = [f"--{key}={value}" for key, value in self.flags.items()]
        return [f"--workdir={directory / 'runs' / self.name}", *self.common, *own]


class Process:
    """A trial that runs.

    `poll` is to be called every now and then: it starts the trial again where it was interrupted, and returns its exit
    code when it has ended. A directory that another process still holds, of a sweep that was killed say, is waited for.
    """

    def __init__(self, trial: Trial, directory: Path, env: Mapping[str, str] | None = None):
        self.trial, self.directory, self.env = trial, directory, env
        self.workdir = directory / "runs" / trial.name
        self.process: subprocess.Popen | None = None
        self.stopped, self.restarts = False, 0

    def poll(self) -> int | None:
        if self.process is None:
            if self.stopped:
                return Preempted.exit_code
            if not held(self.workdir):
                line = [*processes.MAIN, *self.trial.arguments(self.directory)]
                self.process = processes.start(line, self.env, self.workdir / "logs" / "process-0.log")
            return None
        code = self.process.poll()
        if code is not None and (code < 0 or code == Preempted.exit_code) and not self.stopped and self.restarts < 10:
            self.process, self.restarts = None, self.restarts + 1
            return None
        return Preempted.exit_code if code is not None and code < 0 else code

    def stop(self) -> None:
        """Asks it to save and to leave."""
        self.stopped = True
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.terminate()


def run(
    trial: Trial,
    directory: Path,
    env: Mapping[str, str] | None = None,
    on_row: Callable[[Row], bool] = lambda row: False,
) -> int:
    """Runs a trial to its end; returns its exit code.

    Args:
      on_row: is told each row of the record, those of earlier starts too; true stops the trial.
    """
    process, told = Process(trial, directory, env), 0
    with processes.Relay(lambda: [process.process] if process.process else []) as relay:
        while (code := process.poll()) is None:
            process.stopped = process.stopped or relay.requested
            for row in rows(process.workdir)[told:]:
                told += 1
                if on_row(row):
                    process.stop()
            time.sleep(0.2)
    for row in rows(process.workdir)[told:]:
        on_row(row)
    return code


def rows(workdir: Path) -> list[Row]:
    """The record of a run as far as it goes."""
    found = []
    with contextlib.suppress(OSError, ValueError):
        for line in (workdir / "metrics.jsonl").read_text().splitlines():
            found.append(json.loads(line))
    return found


def summary(workdir: Path) -> dict[str, Any] | None:
    """The summary of a run that is done or has diverged."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads((workdir / "summary.json").read_text())
    return None


def is_over(workdir: Path) -> bool:
    """Whether a run is done or has diverged, and so would end in the same way again."""
    return (summary(workdir) or {}).get("status") in ("done", "diverged")


def last_words(workdir: Path) -> str:
    """The last line that a run has said."""
    with contextlib.suppress(OSError, IndexError):
        lines = (workdir / "logs" / "process-0.log").read_text(errors="replace").splitlines()
        return [line for line in lines if line.strip()][-1]
    return "it has said nothing"


def held(workdir: Path) -> bool:
    """Whether a live process has this run directory."""
    try:
        with open(workdir / ".lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
