"""A process that works for another one: it leaves signals to it, and does not outlive it."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from nin_jax.console import track


def begin() -> None:
    """To be called first in the process."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


T = TypeVar("T")


R = TypeVar("R")


def map_threads(f: Callable[[T], R], items: Iterable[T], total: int, what: str) -> Iterator[R]:
    """f of every item, in order, on all cores, under a progress bar; an error or a signal leaves the rest undone."""
    pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
    try:
        yield from track(pool.map(f, items), total, what)
    finally:
        pool.shutdown(cancel_futures=True)
