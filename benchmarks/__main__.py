"""All measurements of speed, or those named; then docs/performance.md is written anew.

    python -m benchmarks [NAME ...]

Each measurement is a file here with a function `main`, and writes benchmarks/results/NAME.json. They want the machine
to themselves. PyTorch comes with the extra `test`.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile

from nin_jax.console import exiting
from nin_jax.devices.cpu_memory import await_dispatches, reuse_memory
from nin_jax.errors import UserError, nearest

NAMES = ("training", "startup", "inside", "changes", "scaling")
BY_NAME = "stream", "gpu", "accelerators"  # only by name: they want a data set, a GPU, compilers for accelerators


def main(names: list[str]) -> None:
    for name in names:
        if name not in NAMES + BY_NAME:
            raise UserError(f"benchmarks: unknown measurement {name!r}: {nearest(name, NAMES + BY_NAME)}")
    if len(names) == 1:
        importlib.import_module(f"benchmarks.{names[0]}").main()
        importlib.import_module("benchmarks.report").main()
        return
    for name in names or NAMES:  # each in a process of its own, with which its memory goes
        subprocess.run([sys.executable, "-m", "benchmarks", name], check=True)


if __name__ == "__main__":
    # What PyTorch compiles is compiled anew, as what XLA compiles is.
    with tempfile.TemporaryDirectory() as scratch:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", scratch)
        await_dispatches()
        reuse_memory()
        with exiting():
            main(sys.argv[1:])
