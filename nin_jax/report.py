"""The record of a run: what is said on the screen, metrics.jsonl, TensorBoard, summary.json, and the clock."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)

from nin_jax.errors import StorageFailed

T = TypeVar("T")

console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "ml-collections", "numpy")


def say(line: str) -> None:
    """One line for the user, on stderr."""
    console.print(line, markup=False)


class _Rate(ProgressColumn):
    """Images per second, when the caller gives them."""

    def render(self, task: Task) -> str:
        rate = task.fields.get("images_per_s")
        return f"{rate:,.0f} images/s" if rate else ""


def progress() -> Progress:
    """A progress bar with images/s and the time left; invisible where stderr is not a terminal."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def track(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Passes `items` on under a progress bar; on a pipe one line says what is going on if it takes more than 2 s."""
    begin, said = time.perf_counter(), console.is_terminal
    with progress() as bar:
        for i, item in enumerate(bar.track(items, total=total, description=what)):
            if not said and time.perf_counter() - begin > 2:
                say(f"{what}: {i} of {total}")
                said = True
            yield item


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file so that it is there whole or not at all."""
    write_whole(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Writes a file so that it is there whole, or as it was before. Raises `StorageFailed`."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(scratch, "w") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        scratch.replace(path)
    except OSError as error:
        raise StorageFailed(f"cannot write {path}: {error}") from error


class Record:
    """metrics.jsonl, with one row for each (step, split), once, whatever happens in between; and TensorBoard.

    Opening it for a run that goes on from `step` drops the rows after that step (they will come again) and a half
    last line. Rows are on disk before `write` returns; TensorBoard's file may lack those of the two minutes before a
    kill -9.
    """

    def __init__(self, workdir: Path, step: int):
        self.path = workdir / "metrics.jsonl"
        self.done: set[tuple[int, str]] = set()
        kept = []
        try:
            for line in self.path.read_text(errors="replace").splitlines() if self.path.exists() else ():
                try:
                    row = json.loads(line)
                    key = (row["step"], row["split"])
                except (ValueError, KeyError, TypeError):
                    say(f"{self.path}: dropped an unreadable line")
                    continue
                if key[0] <= step and key not in self.done:
                    kept.append(line + "\n")
                    self.done.add(key)
            write_whole(self.path, "".join(kept))
            self.file = open(self.path, "a")  # noqa: SIM115 - open for as long as the run
        except OSError as error:
            raise StorageFailed(f"cannot write {self.path}: {error}") from error
        self.tensorboard: Any = None
        self.step = step

    def write(self, row: dict[str, Any]) -> None:
        """Adds a row; numbers go to TensorBoard as SPLIT/NAME too."""
        self.done.add((row["step"], row["split"]))
        try:
            self.file.write(json.dumps(row) + "\n")
            self.file.flush()
            os.fsync(self.file.fileno())
        except OSError as error:
            raise StorageFailed(f"cannot write {self.path}: {error}") from error
        if self.tensorboard is None and importlib.util.find_spec("tensorboardX"):
            # Not sooner: it takes seconds to import where PyTorch is installed, which it looks for.
            from tensorboardX import SummaryWriter

            # purge_step hides what an interrupted start wrote after the step that this one goes on from.
            self.tensorboard = SummaryWriter(str(self.path.parent / "tensorboard"), purge_step=self.step + 1)
        if self.tensorboard:
            for name, value in row.items():
                if name not in ("step", "split", "epoch"):
                    self.tensorboard.add_scalar(f"{row['split']}/{name}", value, row["step"])
        numbers = ", ".join(f"{k} {v:,.4g}" for k, v in row.items() if k not in ("step", "split", "epoch"))
        say(f"epoch {row['epoch']:g}, step {row['step']}, {row['split']}: {numbers}")

    def close(self) -> None:
        """Closes the files."""
        self.file.close()
        if self.tensorboard:
            self.tensorboard.close()


class Clock:
    """Seconds spent on each part of a run ("train", "compile", "eval"), over all its starts."""

    def __init__(self, seconds: dict[str, float]):
        self.seconds = dict(seconds)

    @contextlib.contextmanager
    def time(self, part: str) -> Iterator[None]:
        """Adds the time inside to `part`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start


def versions() -> dict[str, str]:
    """Versions of Python and of what the numbers of a run depend on."""
    found = {"python": platform.python_version(), "nin_jax": importlib.import_module("nin_jax").__version__}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def commit() -> str | None:
    """The commit of the checkout that this package runs from, with "+" if files differ from it; None without one."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        # Installed, the package may lie inside a checkout of something else.
        subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True, check=True)
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed else "")


def one_line(error: BaseException) -> str:
    """An error as one line of text."""
    return " ".join(str(error).split()) or type(error).__name__


def fail(line: str) -> None:
    """The one line of a command that did not end well, plain, on stderr."""
    print(f"nin_jax: {' '.join(line.split())}", file=sys.stderr, flush=True)
