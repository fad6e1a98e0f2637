"""Runs a real command with hooks: `python -m tests.faults.child HOOKS MODULE ARGUMENT ...`, HOOKS a JSON list.

MODULE is that of the command, such as nin_jax.main.

A hook is {"at": "module:Class.function", "call": n, "do": WHAT, ...}; or at an event of the loop, such as
"nin_jax.training.loop:Event.BEFORE_SAVE". At the n-th call of the function, or event, it does:

    {"do": "signal", "number": 9, "after": seconds, "times": 1}   sends itself a signal, later if `after` says so
    {"do": "raise", "errno": 28, "times": 3}                       raises OSError instead of the call, so many times
    {"do": "slow", "until": path}                                  takes a second more, from then on, until there is a file
    {"do": "wait", "until": path}                                  waits for a file
    {"do": "hang"}                                                 never returns
    {"do": "remove", "path": ...}, {"do": "move", ...}             deletes, or renames, a folder
    {"do": "clock", "by": seconds}                                 time.time jumps
    {"do": "set", "name": name, "to": value}                       sets a constant of the function's module
"""

from __future__ import annotations

import enum
import functools
import importlib
import json
import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from typing import Any


def later(seconds: float, number: int, times: int) -> None:
    """Sends signals to this process: the first one after `seconds`, or now where that is 0, the others from a thread."""
    pauses = [seconds] * bool(seconds) + [0.05] * (times - 1)

    def send() -> None:
        for pause in pauses:
            time.sleep(pause)
            os.kill(os.getpid(), number)

    if pauses:
        threading.Thread(target=send, daemon=True).start()
    if not seconds:
        os.kill(os.getpid(), number)


def harm(hook: dict[str, Any]) -> None:
    """Does what the hook says."""
    match hook["do"]:
        case "signal":
            later(hook.get("after", 0.0), hook["number"], hook.get("times", 1))
        case "raise":
            raise OSError(hook["errno"], os.strerror(hook["errno"]))
        case "slow" if not os.path.exists(hook["until"]):
            time.sleep(1)
        case "wait":
            while not os.path.exists(hook["until"]):
                time.sleep(0.05)
        case "hang":
            threading.Event().wait()
        case "remove":
            while os.path.exists(hook["path"]):  # what is being saved may bring parts of it back
                shutil.rmtree(hook["path"], ignore_errors=True)
        case "move":
            os.rename(hook["path"], hook["path"] + ".moved")
        case "set":
            setattr(importlib.import_module(hook["at"].partition(":")[0]), hook["name"], hook["to"])
        case "clock":
            real = time.time
            time.time = lambda: real() + hook["by"]


def counted(hook: dict[str, Any], real: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with harm at the call that the hook names."""
    calls = 0

    @functools.wraps(real)
    def hooked(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        calls_with_harm = {"raise": hook.get("times", 1), "slow": math.inf}.get(hook["do"], 1)
        if hook["call"] <= calls < hook["call"] + calls_with_harm:
            harm(hook)
        return real(*arguments, **options)

    return hooked


def install(hook: dict[str, Any], on_event: dict[Any, Callable[[], None]]) -> None:
    """Puts a hook on a real function, or into `on_event`."""
    module, _, path = hook["at"].partition(":")
    owner = importlib.import_module(module)
    *parts, name = path.split(".")
    for part in parts:
        owner = getattr(owner, part)
    real = getattr(owner, name)
    if isinstance(real, enum.Enum):
        on_event[real] = counted(hook, on_event.get(real, lambda: None))
    else:
        setattr(owner, name, counted(hook, real))


if __name__ == "__main__":
    events: dict[Any, Callable[[], None]] = {}
    for one in json.loads(sys.argv[1]):
        install(one, events)
    if events:
        from nin_jax.training import loop

        loop.train = functools.partial(loop.train, hook=lambda event, step: events.get(event, lambda: None)())
    command = importlib.import_module(sys.argv[2])
    sys.argv = ["nin_jax", *sys.argv[3:]]
    command.main()
