"""Child processes that end with their parent, and together."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType

from nin_jax.devices.signals import STOPPING

MAIN = (sys.executable, "-m", "nin_jax.main")


def start(command: Sequence[str], env: Mapping[str, str] | None = None, log: Path | None = None) -> subprocess.Popen:
    """Starts a command in its own session, with `env` added to the environment and its output appended to `log`.

    Ctrl-C in the terminal does not reach it; the parent passes signals on. If the parent is killed, the kernel sends the
    command SIGTERM, so that it saves a checkpoint and exits.
    """
    parent, libc = os.getpid(), ctypes.CDLL(None)

    def follow() -> None:
        libc.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(75)

    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
    with open(log or os.devnull, "ab") as file:
        output = file if log else None
        return subprocess.Popen(
            list(command),
            env={**os.environ, **(env or {})},
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=follow if sys.platform == "linux" else None,
        )


def wait(processes: Sequence[subprocess.Popen], grace: float) -> list[int]:
    """Waits for processes that need each other; returns their exit codes.

    Once one has failed, the others get `grace` seconds to exit and are then killed: JAX would keep them waiting.
    """
    failed_at = None
    while any(p.poll() is None for p in processes):
        if failed_at is None and any(p.returncode for p in processes):
            failed_at = time.monotonic()
        if failed_at is not None and time.monotonic() > failed_at + grace:
            for p in processes:
                p.kill()
        time.sleep(0.05)
    return [p.returncode for p in processes]


class Relay:
    """A context that passes the signals of `STOPPING` on to processes, as SIGTERM; `requested` says whether one has come.

    Only SIGTERM and SIGINT are taken from a handler that is there already, such as nohup's or submitit's.

    Args:
      alive: returns the processes that run at the moment.
    """

    def __init__(self, alive: Callable[[], Sequence[subprocess.Popen]]):
        self.alive, self.requested = alive, False

    def __enter__(self) -> Relay:
        ours = (s for s in STOPPING if s in (signal.SIGTERM, signal.SIGINT) or signal.getsignal(s) == signal.SIG_DFL)
        self.before = {s: signal.signal(s, self._pass_on) for s in ours}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        for process in self.alive():
            if process.poll() is None:
                process.terminate()
