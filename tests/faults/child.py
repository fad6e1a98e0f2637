"""Runs the real command with hooks: `python -m tests.faults.child HOOKS ARGUMENT ...`, HOOKS a JSON list.

A hook is {"at": "module:Class.function", "call": n, "do": WHAT, ...}. At the n-th call of the function it does:

    {"do": "signal", "number": 9, "after": seconds, "times": 1}   sends itself a signal, later if `after` says so
    {"do": "raise", "errno": 28, "times": 3}                       raises OSError instead of the call, so many times
    {"do": "hang"}                                                 never returns
    {"do": "remove", "path": ...}, {"do": "move", ...}             deletes, or renames, a folder
    {"do": "clock", "by": seconds}                                 time.time jumps
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import shutil
import sys
import threading
import time
from typing import Any


def later(seconds: float, number: int, times: int) -> None:
    """Sends signals to this process from a thread, or now."""

    def send() -> None:
        time.sleep(seconds)
        for _ in range(times):
            os.kill(os.getpid(), number)
            time.sleep(0.05)

    if seconds or times > 1:
        threading.Thread(target=send, daemon=True).start()
    else:
        os.kill(os.getpid(), number)


def harm(hook: dict[str, Any]) -> None:
    """Does what the hook says."""
    match hook["do"]:
        case "signal":
            later(hook.get("after", 0.0), hook["number"], hook.get("times", 1))
        case "raise":
            raise OSError(hook["errno"], os.strerror(hook["errno"]))
        case "hang":
            threading.Event().wait()
        case "remove":
            while os.path.exists(hook["path"]):  # what is being saved may bring parts of it back
                shutil.rmtree(hook["path"], ignore_errors=True)
        case "move":
            os.rename(hook["path"], hook["path"] + ".moved")
        case "clock":
            real = time.time
            time.time = lambda: real() + hook["by"]


def install(hook: dict[str, Any]) -> None:
    """Puts a hook on a real function."""
    module, _, path = hook["at"].partition(":")
    owner = importlib.import_module(module)
    *parts, name = path.split(".")
    for part in parts:
        owner = getattr(owner, part)
    real, calls = getattr(owner, name), 0

    @functools.wraps(real)
    def hooked(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if hook["call"] <= calls < hook["call"] + (hook.get("times", 1) if hook["do"] == "raise" else 1):
            harm(hook)
        return real(*arguments, **options)

    setattr(owner, name, hooked)


if __name__ == "__main__":
    for one in json.loads(sys.argv[1]):
        install(one)
    from nin_jax.main import main

    sys.argv = ["nin_jax", *sys.argv[2:]]
    main()
