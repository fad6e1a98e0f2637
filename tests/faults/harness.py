"""What the fault tests are made of: the real command as a subprocess, harm at a chosen moment, comparison, the tally.

Harm at a moment of the clock is done from outside. Harm in a phase is done by `tests/faults/child.py`, which runs the real
command with hooks on real functions: the n-th call of one kills the process, raises, hangs.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests import tiny

ROOT = Path(__file__).parents[2]
FULL = os.environ.get("NIN_JAX_FAULTS") == "full"  # `python -m tests.faults`
SECONDS = 600  # longest that a command may take, however busy the machine is

# The config of other tests, with an epoch more, as changes of experiments/digits.py.
TINY = {key: value for key, value in tiny.TINY.items() if key != "model.name"} | {
    "epochs": 4,
    "eval_every_epochs": 1,
    "checkpoint_every_epochs": 1,
    "keep": 4,
    "model.relu_on_class_maps": True,
    "optimizer.learning_rate_factors": (),
    "optimizer.clip_norm": 0.0,
}


def words(workdir: Path | str, **changes: Any) -> list[str]:
    """The arguments of a command that trains a small network in `workdir`."""
    settings = TINY | changes
    return [
        "--config=experiments/digits.py",
        f"--workdir={workdir}",
        *(f"--config.{key}={value}" for key, value in settings.items()),
    ]


def environment() -> dict[str, str]:
    """As a user has it, one CPU device, but with the session's caches: what compiles, compiles once, and quickly by default."""
    flags = [] if FULL else [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in flag]
    return os.environ | {
        "XLA_FLAGS": " ".join(flags),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def start(
    arguments: Sequence[str],
    *hooks: dict[str, Any],
    prefix: Sequence[str] = (),
    module: str = "nin_jax.main",
    **env: str,
) -> subprocess.Popen:
    """Starts the command, or that of another module; with hooks, by way of child.py."""
    command = ["tests.faults.child", json.dumps(hooks), module] if hooks else [module]
    return subprocess.Popen(
        [*prefix, sys.executable, "-m", *command, *arguments],
        cwd=ROOT,
        env=environment() | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@dataclasses.dataclass
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def last(self) -> str:
        """The last line on stderr."""
        return (self.err.strip().splitlines() or [""])[-1]

    def clean(self) -> bool:
        """Whether nobody saw a traceback."""
        return "Traceback" not in self.err and "Fatal Python error" not in self.err


def finish(process: subprocess.Popen, seconds: float = SECONDS) -> Ended:
    """Waits for a command."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"the command hangs: {err}") from None
    return Ended(process.returncode, out, err)


def run(arguments: Sequence[str], *hooks: dict[str, Any], **options: Any) -> Ended:
    """Starts a command and waits for it."""
    return finish(start(arguments, *hooks, **options))


def rows(workdir: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without its timings."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "images_per_s"} for line in lines]


def steps(workdir: Path) -> list[int]:
    """The steps of the checkpoints."""
    folder = workdir / "checkpoints"
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []


def saved_checksums(workdir: Path, step: int) -> dict[str, str]:
    """The CRC-32 of each array of a checkpoint, as it was saved."""
    notes = json.loads((workdir / "checkpoints" / str(step) / "notes.json").read_text())
    return json.loads(notes["content"])["arrays"]


def final_state(workdir: Path) -> tuple[int, dict[str, str]]:
    """The newest checkpoint's step and the CRC-32 of each of its arrays, as it was saved."""
    step = steps(workdir)[-1]
    return step, saved_checksums(workdir, step)


def assert_same_run(workdir: Path, calm: Path) -> None:
    """Parameters, momentum and rows bit for bit, every row once, and a summary that says done."""
    assert final_state(workdir) == final_state(calm)
    assert rows(workdir) == rows(calm)
    summary = json.loads((workdir / "summary.json").read_text())
    wanted = json.loads((calm / "summary.json").read_text())
    assert [summary[k] for k in ("status", "step", "test_error_pct")] == [
        wanted[k] for k in ("status", "step", "test_error_pct")
    ]


def assert_resumes(workdir: Path, calm: Path, **changes: Any) -> None:
    """The same command once more ends well, and the run is the undisturbed one."""
    ended = run(words(workdir, **changes))
    assert ended.code == 0, ended.err
    assert ended.clean(), ended.err
    assert_same_run(workdir, calm)


def own_mounts(script: str, *arguments: str) -> list[str] | None:
    """A prefix under which a command sees mounts of its own that `script` makes; None where that is not allowed.

    The script gets `arguments` as $1, $2, ... and then the command as "$@".
    """
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        return None
    return ["unshare", "-rm", "sh", "-c", script, "sh", *arguments]
