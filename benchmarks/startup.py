"""Start-up: from the command to its answer, and to the first epoch's end, with and without the compilation cache."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import measure

ROUNDS = 5
MAIN = [sys.executable, "-m", "nin_jax.main"]
DIGITS = [*MAIN, "--config=experiments/digits.py", "--config.epochs=1"]


def answer(words: list[str], code: int) -> float:
    """Seconds until a command has ended, with this exit code."""
    begin = time.perf_counter()
    done = subprocess.run([*MAIN, *words], capture_output=True, check=False)
    if done.returncode != code:
        raise AssertionError(f"{words}: exit code {done.returncode}, not {code}: {done.stderr.decode()}")
    return time.perf_counter() - begin


def imported() -> float:
    """Seconds to start Python and import jax."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import jax"], check=True)
    return time.perf_counter() - begin


def first_row(cache: Path) -> float:
    """Seconds until metrics.jsonl has its first row, after 22 steps; then the command is killed."""
    with tempfile.TemporaryDirectory() as run:
        begin = time.perf_counter()
        process = measure.start([*DIGITS, f"--workdir={run}"], cache)
        rows = Path(run, "metrics.jsonl")
        while process.poll() is None and not (rows.exists() and rows.stat().st_size):
            time.sleep(0.005)
        seconds = time.perf_counter() - begin
        if process.poll() is not None:
            raise AssertionError(f"the digits command ended with {process.returncode}")
        process.kill()
        process.wait()
    return seconds


def main() -> None:
    """All of them."""
    rows: list[dict[str, Any]] = []

    def add(what: str, seconds: Callable[[int], float]) -> None:
        kept = [round(seconds(i), 3) for i in range(ROUNDS)]
        rows.append({"what": what, "seconds": kept, "median": statistics.median(kept)})

    add("`import jax` by itself, as a measure of the machine", lambda _: imported())
    for what, words, code in (
        ("`--help`", ["--help"], 0),
        ("a mistyped config key", ["--config=experiments/digits.py", "--config.epoch=3"], 2),
        ("a mistyped model", ["--config=experiments/digits.py", "--config.model.name=nim"], 2),
        ("a data_dir that is not there", ["--config=experiments/cifar10.py", "--config.data_dir=/nowhere"], 2),
    ):
        add(what, lambda _, words=words, code=code: answer(words, code))
    with tempfile.TemporaryDirectory() as scratch:
        add("digits, first 22 steps, nothing cached", lambda i: first_row(Path(scratch, str(i))))
        whole = [*DIGITS, f"--workdir={scratch}/run"]
        subprocess.run(whole, env=os.environ | {"XDG_CACHE_HOME": scratch}, capture_output=True, check=True)
        add("digits, first 22 steps, cached", lambda _: first_row(Path(scratch)))
    measure.save("startup", rows)
