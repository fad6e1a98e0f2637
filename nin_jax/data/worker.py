"""Threads, and worker processes, which leave signals to their parent and do not outlive it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import resource_tracker
from typing import TypeVar

from nin_jax.console import track
from nin_jax.devices.signals import STOPPING

T = TypeVar("T")
R = TypeVar("R")


def silence_size_warnings() -> None:
    """Turns off Pillow's warning of large pictures in the whole process: `data.pictures` has its own limits."""
    warnings.filterwarnings("ignore", r"Image size \(\d+ pixels\) exceeds limit", RuntimeWarning)


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_threads(f: Callable[[T], R], items: Iterable[T], total: int, what: str) -> Iterator[R]:
    """`f` of every item, in order, on all cores, under a progress bar. An error or a signal cancels the rest."""
    pool = concurrent.futures.ThreadPoolExecutor(cores())
    try:
        yield from track(pool.map(f, items), total, what)
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """Around the start of worker processes: a signal to all processes of a run must not kill one that has not begun.

    What this thread starts, processes and threads, inherits that the signals of `STOPPING` are blocked; the main
    thread gets them as ever.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        resource_tracker.ensure_running()  # multiprocessing's own process, whose start unblocks SIGINT and SIGTERM
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin() -> None:
    """Called first in a worker process: it leaves the signals of `STOPPING` to its parent and does not outlive it."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    silence_size_warnings()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
