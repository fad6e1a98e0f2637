"""What the user sees: lines on stderr and progress bars."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from nin_jax.errors import ExitError

T = TypeVar("T")

console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


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


@contextlib.contextmanager
def transfer(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """A progress bar of `total` bytes; the function that it gives is told how many there are so far."""
    columns = *Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda size: bar.update(task, completed=size)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table on stdout."""
    shown = Table(*columns, title=title)
    for row in rows:
        shown.add_row(*row)
    Console(highlight=False, width=100).print(shown)


def fail(line: str) -> None:
    """The one line of a command that did not end well, plain, on stderr."""
    print(f"nin_jax: {' '.join(line.split())}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def exiting() -> Iterator[None]:
    """Ends the process as an `ExitError` says: one line on stderr, and its exit code."""
    try:
        yield
    except ExitError as error:
        fail(str(error))
        raise SystemExit(error.exit_code) from None
