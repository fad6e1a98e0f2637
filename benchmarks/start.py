"""Does a recipe start? Steps until the training loss leaves ln(classes), seed by seed, on the whole training split.

    python -m benchmarks.start --config=experiments/cifar10.py [--seeds=0,1,2,3,4] [--updates=600] [--config.data_dir=DIR]
    python -m benchmarks.start --table

A run has started when the mean training loss of 25 steps is 5 % below ln(classes); it is dead when every class has had a
constant logit for 50 steps. Each seed adds a row to benchmarks/results/start.csv: the step at which it had started
("dead"; empty: not within --updates), the loss and the number of dead classes then, the command and the versions. --table
writes the rows into docs/starting.md.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import math
import platform
import time
from pathlib import Path

import jax
import numpy as np

from benchmarks.runs import Ours
from nin_jax import main
from nin_jax.console import exiting, say
from nin_jax.data.cache import cache_dir
from nin_jax.devices.cpu_memory import await_dispatches, reuse_memory
from nin_jax.devices.mesh import host
from nin_jax.paper import pages
from nin_jax.runs.provenance import commit, versions
from nin_jax.training.build import Run
from nin_jax.training.health import DEAD_AFTER

WINDOW = 25  # steps that the loss is averaged over
STARTED = 0.95  # of ln(classes)
RESULTS = Path(__file__).parent / "results" / "start.csv"
DOC = Path(__file__).parent.parent / "docs" / "starting.md"
FIELDS = ["config", "overrides", "seed", "started_at", "loss", "dead_classes", "updates", "seconds", "machine"]
FIELDS += ["versions", "commit", "date"]


def updates_to_start(ours: Ours, limit: int) -> dict:
    """Trains until it has started, or `limit` steps; returns the measured part of a row."""
    classes, begin = ours.run.info.classes, time.perf_counter()
    losses, constant_for = [], np.zeros(classes)
    row = {"seed": ours.config.seed, "started_at": None}
    for update in range(1, limit + 1):
        metrics = host(ours.dispatch())
        losses.append(float(metrics["loss"][0]))
        constant_for = (constant_for + 1) * metrics["constant"][0]
        row |= {"updates": update, "loss": round(float(np.mean(losses[-WINDOW:])), 4)}
        row["dead_classes"] = int(metrics["constant"].sum())
        if update % 50 == 0:
            say(f"seed {row['seed']}, step {update}: loss {row['loss']}, {row['dead_classes']} dead classes")
        if update >= WINDOW and row["loss"] < STARTED * math.log(classes):
            row["started_at"] = update
            break
        if constant_for.min() >= DEAD_AFTER:
            row["started_at"] = "dead"
            break
    return row | {"seconds": round(time.perf_counter() - begin, 1)}


def table() -> str:
    """The rows as a Markdown table, one line for each config."""
    rows: dict[str, list[dict[str, str]]] = {}
    with open(RESULTS, newline="") as f:
        for row in csv.DictReader(f):
            rows.setdefault(f"{row['config']} {row['overrides']}".strip(), []).append(row)
    said = {"": "not within {updates}", "dead": "dead at {updates}"}
    lines = []
    for config, these in rows.items():
        started = [r for r in these if r["started_at"] not in said]
        updates = ", ".join(f"{r['seed']}: {said.get(r['started_at'], '{started_at}').format(**r)}" for r in these)
        lines.append([f"`{config}`", f"{len(started)} of {len(these)}", updates])
    return pages.markdown(["config", "started", "at update, by seed"], lines)


def measure(flags: list[str], seeds: list[int], limit: int) -> None:
    """Adds a row for each seed of the experiment that the flags of `nin_jax.main` describe."""
    run = Run(main.parse(["start", *flags]).config)
    split = run.load(run.config.train_split)
    assert isinstance(split, tuple), "only data sets that fit in memory"
    stats = run.fitted(Path("/nonexistent"), write=False, train=split)
    known = {
        "config": next(w.split("=", 1)[1] for w in flags if w.startswith("--config=")),
        "overrides": " ".join(w for w in flags if w.startswith("--config.") and "data_dir" not in w),
        "machine": f"{platform.machine()}, {run.mesh.size} x {run.mesh.devices.flat[0].device_kind}",
        "versions": json.dumps({k: v for k, v in versions().items() if k in ("python", "jax", "flax", "optax")}),
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
    }
    for seed in seeds:
        config = main.parse(["start", *flags, f"--config.seed={seed}"]).config
        row = known | updates_to_start(Ours(config, split, stats, length=1), limit)
        say(f"seed {seed}: started at step {row['started_at']}, stopped after {row['updates']}")
        new = not RESULTS.exists()
        with open(RESULTS, "a", newline="") as f:
            writer = csv.DictWriter(f, FIELDS)
            if new:
                writer.writeheader()
            writer.writerow(row)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.start", allow_abbrev=False)
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--updates", type=int, default=600)
    parser.add_argument("--table", action="store_true")
    args, flags = parser.parse_known_args()
    with exiting():
        if args.table:
            pages.write(DOC, {"starts": table()})
        else:
            await_dispatches()
            reuse_memory()
            jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
            measure(flags, [int(seed) for seed in args.seeds.split(",")], args.updates)
