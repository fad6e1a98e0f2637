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

from nin_jax import storage
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


class TensorBoard:
    """TensorBoard's event file: the numbers of each row as SPLIT/NAME. What goes wrong with it costs a line and no run.

    Args:
      folder: where it lies.
      purge_step: what an interrupted start wrote from this step on is hidden.
    """

    def __init__(self, folder: Path, purge_step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2

        messages: Any = vars(event_pb2) | vars(summary_pb2)  # made at import time, so that pyright sees none
        self.Event, self.Summary = messages["Event"], messages["Summary"]
        self.file: Any = None
        try:
            folder.mkdir(exist_ok=True)
            # Not the usual SummaryWriter, which writes in a thread, minutes later, and dies there of a full disk.
            self.file = EventsWriter(str(folder / "events"))
            start = messages["SessionLog"](status=messages["SessionLog"].START)
            self.file.write_event(self.Event(wall_time=time.time(), step=purge_step, session_log=start))
        except OSError as error:
            self._give_up(error)

    def write(self, row: dict[str, Any]) -> None:
        """Adds the numbers of a row."""
        if self.file:
            names = [name for name in row if name not in ("step", "split", "epoch")]
            values = [self.Summary.Value(tag=f"{row['split']}/{name}", simple_value=row[name]) for name in names]
            event = self.Event(wall_time=time.time(), step=row["step"], summary=self.Summary(value=values))
            try:
                self.file.write_event(event)
                self.file.flush()
            except OSError as error:
                self._give_up(error)

    def close(self) -> None:
        """Closes the file."""
        if self.file:
            with contextlib.suppress(OSError):
                self.file.close()
        self.file = None

    def _give_up(self, error: OSError) -> None:
        self.close()
        say(f"tensorboard/ gets no more rows: {one_line(error)}")


class Record:
    """metrics.jsonl, with one row for each (step, split), once, whatever happens in between; and TensorBoard.

    Opening it for a run that goes on from `step` drops the rows after that step (they will come again) and a half
    last line. Rows are on disk before `write` returns.
    """

    def __init__(self, workdir: Path, step: int):
        self.path = workdir / "metrics.jsonl"
        self.done: set[tuple[int, str]] = set()
        kept = []
        for line in self.path.read_text(errors="replace").splitlines() if self.path.exists() else ():
            try:
                row = json.loads(line)
                key = (row["step"], row["split"])
                in_time = key[0] <= step and key not in self.done
            except (ValueError, KeyError, TypeError, RecursionError):
                say(f"{self.path}: dropped an unreadable line")
                continue
            if in_time:
                kept.append(line + "\n")
                self.done.add(key)
        storage.write_whole(self.path, "".join(kept))
        self.file = storage.persist(str(self.path), lambda: open(self.path, "a"))  # noqa: SIM115 - for the whole run
        self.tensorboard: TensorBoard | None = None
        self.step = step

    def write(self, row: dict[str, Any]) -> None:
        """Adds a row, to TensorBoard too."""
        self.check()
        self.done.add((row["step"], row["split"]))
        self.file.write(json.dumps(row) + "\n")

        def flush() -> None:  # what could not be written stays in the file's buffer for the next attempt
            self.file.flush()
            os.fsync(self.file.fileno())

        storage.persist(str(self.path), flush)
        if self.tensorboard is None and importlib.util.find_spec("tensorboardX"):
            # Not sooner: it takes seconds to import where PyTorch is installed, which it looks for.
            self.tensorboard = TensorBoard(self.path.parent / "tensorboard", self.step + 1)
        if self.tensorboard:
            self.tensorboard.write(row)
        numbers = ", ".join(f"{k} {v:,.4g}" for k, v in row.items() if k not in ("step", "split", "epoch"))
        say(f"epoch {row['epoch']:g}, step {row['step']}, {row['split']}: {numbers}")

    def check(self) -> None:
        """Raises `StorageFailed` where the file is not the one at its path any more: rows would go nowhere."""
        try:
            ours = os.path.samestat(os.stat(self.path), os.fstat(self.file.fileno()))
        except OSError:
            ours = False
        if not ours:
            raise StorageFailed(f"{self.path} was deleted, moved or replaced while the run was writing it")

    def close(self) -> None:
        """Closes the files."""
        with contextlib.suppress(OSError):  # what could not be written has been said
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
