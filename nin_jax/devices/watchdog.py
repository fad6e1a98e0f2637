"""Ends a run that hangs, on a device, a peer or a file system, with every thread's stack on stderr."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable

from nin_jax.console import fail
from nin_jax.errors import Preempted


def _leave() -> None:
    os._exit(Preempted.exit_code)  # hung threads would block any other way of exiting


def was_stopped(slept: float, pause: float) -> bool:
    """Whether a thread that meant to sleep for `pause` seconds slept so long that its process must have been stopped."""
    return slept > 2 * pause + 1


class Watchdog:
    """While entered, ends the process with exit code 75 ("start again") `seconds` after the last `beat`.

    Before the first beat nothing is watched. When the process itself was stopped (SIGSTOP, a laptop's lid), the time
    starts again: lack of progress then means nothing.

    Args:
      seconds: patience; 0: there is no watchdog.
      leave: what ends the process.
    """

    def __init__(self, seconds: float, leave: Callable[[], None] = _leave):
        self.seconds, self.leave = seconds, leave
        self.last: float | None = None
        self.closed = threading.Event()

    def __enter__(self) -> Watchdog:
        if self.seconds:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closed.set()

    def beat(self) -> None:
        """Reports progress."""
        self.last = time.monotonic()

    def _watch(self) -> None:
        pause = min(self.seconds / 4, 5.0)
        looked = time.monotonic()
        while not self.closed.wait(pause):
            now = time.monotonic()
            if self.last is None:
                looked = now
                continue
            if was_stopped(now - looked, pause):
                self.last = now
            looked = now
            if now - self.last > self.seconds:
                faulthandler.dump_traceback(sys.__stderr__ or sys.stderr, all_threads=True)
                fail(
                    f"no progress for {now - self.last:.0f} s (watchdog_seconds={self.seconds:g}; the stacks are "
                    "above): ended; start again to resume from the last checkpoint"
                )
                self.leave()
                return
