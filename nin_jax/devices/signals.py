"""Signals that ask a run to stop: it saves a checkpoint and exits with code 75."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from nin_jax.console import console, fail
from nin_jax.errors import Preempted

# SIGTERM from kill and schedulers, SIGINT from Ctrl-C, SIGHUP from a terminal that closes; SIGUSR1 and SIGUSR2 from
# Slurm and submitit, some time before they kill.
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def catch(handler: Callable[[int, FrameType | None], None], *but: int) -> dict[int, Any]:
    """Installs a handler for the signals of `STOPPING` `but` some; returns the handlers before.

    nohup's SIGHUP stays ignored. Outside of the main thread, which alone may, nothing is installed: a notebook or a server that
    trains in another thread keeps its own handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    chosen = [s for s in STOPPING if s not in but]
    ignored = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else []
    return {s: signal.signal(s, handler) for s in chosen if s not in ignored}


@contextlib.contextmanager
def nothing_to_save(ends: bool) -> Iterator[None]:
    """While nothing else handles them, the signals of `STOPPING` end the process at once, with a line and exit code 75.

    An exception would not do: it might arrive in an import that catches it. If the process `ends` after this, signals
    change nothing any more, so that the exit code is that of its work.
    """

    def handle(number: int, _: FrameType | None) -> None:
        console.show_cursor()  # which a progress bar has hidden
        fail(f"{signal.Signals(number).name}: ended at once, without saving; start again")
        os._exit(Preempted.exit_code)

    before = catch(handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if ends else handler)


class _AtOnce(BaseException):
    """Not an `Exception`: it may arrive in an import or in a library that catches those."""


class Stop:
    """Catches the signals of `STOPPING` while entered.

    Before there is anything to save (`can_save` is False) a signal ends the command at once with `Preempted`; after
    that it only sets `requested`, which the loop checks between two dispatches. A second SIGINT (Ctrl-C pressed again)
    does not wait for the save, which may hang: it goes to the previous handler, which ends a command at once
    (`nothing_to_save`) and raises `KeyboardInterrupt` in a notebook.

    With several processes JAX catches SIGTERM, so that all stop at the same step; the other signals are passed on as
    SIGTERM.
    """

    def __init__(self) -> None:
        from nin_jax.devices import processes  # not earlier: `main` needs this module before it imports JAX

        self.requested: str | None = None
        self.before: dict[int, Any] = {}
        self.can_save, self.shared = False, processes.stop_is_shared()
        self.asked, self.ask = 0, processes.stop_requested

    def __enter__(self) -> Stop:
        if self.shared:
            self.before = catch(lambda *_: signal.raise_signal(signal.SIGTERM), signal.SIGTERM)
        else:
            self.before = catch(self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if isinstance(error, _AtOnce):
            raise Preempted(str(error)) from None

    def __call__(self) -> bool:
        """Whether a stop was asked for. All processes have to ask in the same places."""
        if self.requested is None and self.shared:
            self.asked += 1
            if self.ask(self.asked):
                self.requested = "SIGTERM"
        return self.requested is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        before = self.before.get(number)
        if self.requested and number == signal.SIGINT and callable(before):
            before(number, frame)
        self.requested = name = signal.Signals(number).name
        if not self.can_save:
            raise _AtOnce(f"{name} before the first update: nothing to save; start again")
