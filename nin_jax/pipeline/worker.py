"""A process that works for another one: it leaves signals to it, and does not outlive it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


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
