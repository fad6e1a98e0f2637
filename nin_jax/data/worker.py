"""Threads, and processes that work for this one: they leave signals to it, and do not outlive it."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from nin_jax.console import track

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


def processes(
    count: int, start: Callable[..., None] | None = None, *arguments: Any
) -> concurrent.futures.ProcessPoolExecutor:
    """A pool of so many processes, each of which calls `start(*arguments)` first."""
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(count, context, _begin, (start, *arguments))
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # which they inherit, until they have learned to ignore them
    try:
        for _ in range(count):
            pool.submit(int)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    return pool


def end(pool: concurrent.futures.Executor) -> None:
    """Ends a pool, whatever its processes are doing.

    Where one of them has died, the executor sends the others SIGTERM, which they ignore, and waits for them.
    """
    for process in list((getattr(pool, "_processes", None) or {}).values()):
        process.kill()
    pool.shutdown(cancel_futures=True)


def _begin(start: Callable[..., None] | None, *arguments: Any) -> None:
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
