"""Threads, and processes that work for this one: they leave signals to it, and do not outlive it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import multiprocessing
import os
import queue
import signal
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from multiprocessing.util import Finalize
from typing import Any, TypeVar

from nin_jax.console import track
from nin_jax.errors import UserError

SIGNALS = (signal.SIGINT, signal.SIGTERM)  # that ask a run to stop

T = TypeVar("T")
R = TypeVar("R")


def silence_size_warnings() -> None:
    """Turns off Pillow's warning of large pictures in the whole process: `data.pictures` has limits of its own."""
    warnings.filterwarnings("ignore", r"Image size \(\d+ pixels\) exceeds limit", RuntimeWarning)


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_threads(f: Callable[[T], R], items: Iterable[T], total: int, what: str) -> Iterator[R]:
    """f of every item, in order, on all cores, under a progress bar; an error or a signal leaves the rest undone."""
    pool = concurrent.futures.ThreadPoolExecutor(cores())
    try:
        yield from track(pool.map(f, items), total, what)
    finally:
        pool.shutdown(cancel_futures=True)


class Threads:
    """So many threads, which share the elements of one sequence after another."""

    def __init__(self, count: int):
        self.count, self.pool = count, concurrent.futures.ThreadPoolExecutor(count)

    def each(self, f: Callable[[int, int], None], items: Sequence[int]) -> None:
        """`f(i, items[i])` for each i."""
        tasks = min(4 * self.count, len(items))  # not one for each: that costs a tenth of decoding a small picture

        def some(first: int) -> None:
            for i in range(first, len(items), tasks):
                f(i, items[i])

        list(self.pool.map(some, range(tasks)))


class Processes(concurrent.futures.ThreadPoolExecutor):
    """So many processes, and a thread that talks to each; each calls `start(*arguments)` first.

    A pipe of its own tells when a process is killed, even in the middle of an answer. `ProcessPoolExecutor` has one queue for
    all and waits for the rest of that answer for ever. `shutdown` ends the processes, whatever they are doing.

    Args:
      flag: that says how many, for the message when one was killed.
    """

    def __init__(self, count: int, flag: str, start: Callable[..., None] | None = None, *arguments: Any):
        super().__init__(count)
        self.died = f"a worker process was killed; if memory ran out, set {flag} to less than {count}"
        self.free: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        context, processes = multiprocessing.get_context("spawn"), []
        self.kill = Finalize(self, _kill, (processes,), exitpriority=0)  # also at exit, before multiprocessing waits
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # which they inherit, until they have learned to ignore them
        try:
            for _ in range(count):
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs, start, *arguments))
                process.start()
                processes.append(process)
                theirs.close()
                self.free.put(ours)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[R]:
        """`fn(*args, **kwargs)`, by one of the processes. The future raises `UserError` if that was killed."""
        return super().submit(self._ask, functools.partial(fn, *args, **kwargs))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Kills the processes. The future of what they were doing raises `UserError`."""
        super().shutdown(wait=False, cancel_futures=cancel_futures)
        self.kill()
        super().shutdown(wait)

    def _ask(self, call: Callable[[], R]) -> R:
        pipe = self.free.get()
        try:
            pipe.send(call)
            answer, error = pipe.recv()
        except (EOFError, OSError) as why:
            raise UserError(self.died) from why
        finally:
            self.free.put(pipe)
        if error is not None:
            raise error
        return answer


def _kill(processes: list[SpawnProcess]) -> None:
    for process in processes:
        process.kill()
        process.join()


def _serve(pipe: Connection, start: Callable[..., None] | None, *arguments: Any) -> None:
    """Does what it is asked, in a process of `Processes`, until the process that asks has ended."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    silence_size_warnings()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    if start is not None:
        start(*arguments)
    with contextlib.suppress(EOFError, OSError):  # of the pipe
        while True:
            call = pipe.recv()
            try:
                answer = call(), None
            except Exception as error:
                error.add_note("".join(traceback.format_exception(error)))  # pickling loses it
                answer = None, error
            pipe.send(answer)
