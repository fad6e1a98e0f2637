"""Fair timing: sides take turns in one process, and the record says on which machine, with which versions."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from nin_jax import storage
from nin_jax.console import say
from nin_jax.runs.provenance import PACKAGES, commit

RESULTS = Path(__file__).parent / "results"


def alternate(sides: Mapping[str, Callable[[], Any]], rounds: int, units: int = 1) -> dict[str, Any]:
    """Times the sides in turns, A B, B A, ...: whatever slows the machine for a while slows all of them.

    Args:
      sides: functions that return when their work is done; each is called once before the clock starts.
      rounds: how often each is timed.
      units: how many units, such as steps, one call does.

    Returns:
      "seconds", for each side the seconds per unit of each round, and their "median".
    """
    for side in sides.values():
        side()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds):
        for name in list(sides)[:: 1 if turn % 2 == 0 else -1]:
            begin = time.perf_counter()
            sides[name]()
            seconds[name].append(round((time.perf_counter() - begin) / units, 6))
    return {"seconds": seconds, "median": {name: statistics.median(s) for name, s in seconds.items()}}


def ratio(row: Mapping[str, Any], slow: str, fast: str) -> tuple[float, float, float]:
    """How many times faster `fast` is: the ratio of the medians, and the smallest and largest ratio of a round."""
    rounds = [a / b for a, b in zip(row["seconds"][slow], row["seconds"][fast], strict=True)]
    return row["median"][slow] / row["median"][fast], min(rounds), max(rounds)


def environment() -> dict[str, Any]:
    """Machine, versions, commit, command and date of a measurement."""
    packages = [*PACKAGES, "torch"]
    versions = {"python": platform.python_version()}
    versions |= {d.name: d.version for d in importlib.metadata.distributions() if d.name in packages}
    device = jax.devices()[0]
    return {
        "machine": {
            "processor": processor(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "device": f"{jax.device_count()} x {device.device_kind}",
        }
        | ({"flags": flags} if (flags := os.environ.get("XLA_FLAGS")) else {}),
        "versions": dict(sorted(versions.items())),
        "commit": commit(),
        "command": "python -m benchmarks " + " ".join(sys.argv[1:]),
        "date": datetime.date.today().isoformat(),
    }


def processor() -> str:
    """The processor's name and its widest vector instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    vectors = [f for f in ("avx512_bf16", "avx512f", "avx2") if f in facts.get("flags", "").split()]
    return f"{facts.get('model name', platform.machine())}, {vectors[0] if vectors else 'no vectors named'}"


def start(command: list[str], cache: Path | str) -> subprocess.Popen:
    """Starts a command, without its output, that keeps compiled programs and decoded data in `cache`."""
    env = os.environ | {"XDG_CACHE_HOME": str(cache)}
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def save(name: str, rows: list[dict[str, Any]]) -> None:
    """Writes benchmarks/results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    storage.write_json(RESULTS / f"{name}.json", {"rows": rows} | environment())
    say(f"{name}: {len(rows)} rows in benchmarks/results/{name}.json")


def read(name: str) -> dict[str, Any]:
    """What `save` wrote."""
    return json.loads((RESULTS / f"{name}.json").read_text())
