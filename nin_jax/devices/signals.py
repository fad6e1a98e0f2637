"""SIGTERM and SIGINT: the run is asked to stop, saves, and leaves with exit code 75."""

from __future__ import annotations

import signal
from types import FrameType

from nin_jax.devices import processes
from nin_jax.errors import Preempted


class _AtOnce(BaseException):
    """No `Exception`: it may arrive in an import or in a library that catches those."""


class Stop:
    """Catches the two signals while it is entered.

    Before there is anything to save (`can_save` is False) a signal ends the command at once with `Preempted`; after
    that it only sets `requested`, which the loop asks for between two dispatches. A second SIGINT (Ctrl-C pressed
    again) does not wait for the save.

    With several processes JAX catches SIGTERM, so that all of them stop at the same step; SIGINT is passed on as that.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self.can_save = False

    def __enter__(self) -> Stop:
        if processes.stop_is_shared():
            self.before = {signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: signal.raise_signal(signal.SIGTERM))}
        else:
            self.before = {s: signal.signal(s, self._handle) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if isinstance(error, _AtOnce):
            raise Preempted(str(error)) from None

    def __call__(self) -> bool:
        """Whether a stop was asked for. All processes have to ask in the same places."""
        if self.requested is None and processes.stop_is_shared() and processes.stop_requested():
            self.requested = "SIGTERM"
        return self.requested is not None

    def _handle(self, number: int, _: FrameType | None) -> None:
        name = signal.Signals(number).name
        again = self.requested is not None and number == signal.SIGINT
        self.requested = name
        if again:
            raise _AtOnce(f"{name} again: stopped without saving; start again to go on from the last checkpoint")
        if not self.can_save:
            raise _AtOnce(f"{name} before the first update: nothing to save; start again")
