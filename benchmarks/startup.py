"""From the command to an answer, and to the first epoch's end: whole processes, cold and with the compilation cache."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import measure

ROUNDS = 5
MAIN = [sys.executable, "-m", "nin_jax.main"]
DIGITS = [*MAIN, "--config=experiments/digits.py", "--config.epochs=1"]


def answer(words: list[str], code: int) -> float:
    """Seconds until a command has ended with this code."""
    begin = time.perf_counter()
    done = subprocess.run([*MAIN, *words], capture_output=True, check=False)
    if done.returncode != code:
        raise AssertionError(f"{words}: exit code {done.returncode}, not {code}: {done.stderr.decode()}")
    return time.perf_counter() - begin


def imported() -> float:
    """Seconds that Python takes to start and to import jax."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import jax"], check=True)
    return round(time.perf_counter() - begin, 3)


def first_row(cache: Path) -> float:
    """Seconds until the first row, of 22 updates, stands in metrics.jsonl; then the command is ended."""
    with tempfile.TemporaryDirectory() as run:
        begin = time.perf_counter()
        process = subprocess.Popen(
            [*DIGITS, f"--workdir={run}"],
            env=os.environ | {"XDG_CACHE_HOME": str(cache)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
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
    rows = [
        {"what": "`import jax` by itself, as a measure of the machine", "seconds": [imported() for _ in range(ROUNDS)]}
    ]
    for what, words, code in (
        ("`--help`", ["--help"], 0),
        ("a mistyped config key", ["--config=experiments/digits.py", "--config.epoch=3"], 2),
        ("a mistyped model", ["--config=experiments/digits.py", "--config.model.name=nim"], 2),
        ("a data_dir that is not there", ["--config=experiments/cifar10.py", "--config.data_dir=/nowhere"], 2),
    ):
        rows.append({"what": what, "seconds": [round(answer(words, code), 3) for _ in range(ROUNDS)]})
    with tempfile.TemporaryDirectory() as scratch:
        cold = [round(first_row(Path(scratch, str(i))), 3) for i in range(ROUNDS)]
        rows.append({"what": "digits, first 22 updates, nothing cached", "seconds": cold})
        whole = [*DIGITS, f"--workdir={scratch}/run"]
        subprocess.run(whole, env=os.environ | {"XDG_CACHE_HOME": scratch}, capture_output=True, check=True)
        cached = [round(first_row(Path(scratch)), 3) for _ in range(ROUNDS)]
        rows.append({"what": "digits, first 22 updates, cached", "seconds": cached})
    measure.save("startup", [row | {"median": statistics.median(row["seconds"])} for row in rows])
