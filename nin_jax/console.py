"""What the user sees: lines on stderr and progress bars."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from nin_jax.errors import ExitError, Preempted

T = TypeVar("T")

console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


def plain(text: str) -> str:
    """Text without what a terminal would obey, since names of files and classes come from outside."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def say(line: str) -> None:
    """One line for the user, on stderr."""
    console.print(plain(line), markup=False)


class _Rate(ProgressColumn):
    """Images per second, when the caller gives them."""

    def render(self, task: Task) -> str:
        rate = task.fields.get("images_per_s")
        return f"{rate:,.0f} images/s" if rate else ""


class _Left(ProgressColumn):
    """The time left: the caller's estimate where there is one, else rich's, from the last half minute."""

    def render(self, task: Task) -> str:
        left = task.fields.get("seconds_left", task.time_remaining)
        return "" if left is None else f"{duration(left)} left"


def duration(seconds: float) -> str:
    """Seconds for a reader.

    >>> duration(7), duration(75), duration(3 * 3600 + 5 * 60)
    ('7 s', '1 min 15 s', '3 h 5 min')
    """
    seconds = round(seconds)
    for size, unit, lower, smaller in ((3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            return f"{seconds // size} {unit} {seconds % size // lower} {smaller}"
    return f"{seconds} s"


_displays: list[Progress] = []  # the one that holds the terminal, while there is one


@contextlib.contextmanager
def bar(what: str, total: int, completed: int = 0) -> Iterator[Callable[..., None]]:
    """A progress bar while it is entered; invisible where stderr is not a terminal.

    Yields a function that takes `completed` or `advance`, a new `description`, and where the caller knows them
    `images_per_s` and `seconds_left`. A bar inside another one is a line below it; what is said meanwhile stands above.
    """
    with contextlib.ExitStack() as held:
        if not _displays:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                _Rate(),
                _Left(),
            )
            display = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
            _displays.append(held.enter_context(display))
            held.callback(_displays.clear)
        task = _displays[0].add_task(what, total=total, completed=completed)
        held.callback(_displays[0].remove_task, task)
        yield functools.partial(_displays[0].update, task)


def track(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Yields `items` under a progress bar; on a pipe, one line says what is going on if it takes more than 2 s."""
    begin, said = time.perf_counter(), console.is_terminal
    with bar(what, total) as update:
        for i, item in enumerate(items):
            if not said and time.perf_counter() - begin > 2:
                say(f"{what}: {i} of {total}")
                said = True
            yield item
            update(completed=i + 1)


@contextlib.contextmanager
def transfer(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """A progress bar of `total` bytes. Yields a function that is given the number of bytes so far."""
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
    """Prints the one line of a command that failed, on stderr."""
    print(f"nin_jax: {plain(' '.join(line.split()))}", file=sys.stderr, flush=True)


class _Lasting:
    """A text stream that falls silent when nobody can read it any more: no message is worth losing a run."""

    def __init__(self, stream: Any, lost: tuple[type[OSError], ...]):
        self.stream, self.lost = stream, lost

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        return self._unless_lost(lambda: self.stream.write(text), len(text))

    def flush(self) -> None:
        self._unless_lost(self.stream.flush, None)

    def _unless_lost(self, f: Callable[[], T], otherwise: T) -> T:
        try:
            return f()
        except self.lost:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())  # what waits in buffers, and what libraries say, goes there too
            os.close(nowhere)
            return otherwise


@contextlib.contextmanager
def lasting_streams() -> Iterator[None]:
    """Inside, the process survives the loss of whoever reads stderr and stdout (a pipe, a terminal, a full disk).

    On stdout it survives only a reader that left: a result that cannot be stored is an error.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file that is opened would get what is said
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):  # a name that the stream's encoding lacks is no reason to end
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    before = sys.stdout, sys.stderr
    sys.stdout = _Lasting(sys.stdout or os.fdopen(1, "w", closefd=False), (BrokenPipeError,))
    sys.stderr = _Lasting(sys.stderr or os.fdopen(2, "w", closefd=False), (OSError,))
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


@contextlib.contextmanager
def exiting() -> Iterator[None]:
    """Ends the process with the line and the exit code of an `ExitError`, or of Ctrl-C."""
    with lasting_streams():
        try:
            yield
        except ExitError as error:
            fail(str(error))
            raise SystemExit(error.exit_code) from None
        except KeyboardInterrupt:
            fail("interrupted; start again")
            raise SystemExit(Preempted.exit_code) from None
