"""Does a recipe start? Updates until the training loss leaves ln(classes), seed by seed, on the whole training split.

    python -m benchmarks.start --config=experiments/cifar10.py --seeds=0,1,2,3,4 --updates=600 [--config.data_dir=DIR]

A run has started when the mean training loss of 25 updates is 5 % below ln(classes), and is dead when every class has had a constant logit for 50 updates. One row a seed is added to benchmarks/results/start.csv: the update
at which it had started ("dead"; empty: not within --updates), the loss then, the number of classes whose map was dead
then, the command and the versions. `python -m benchmarks.start --table` writes the rows into docs/starting.md.
"""

from __future__ import annotations

import csv
import datetime
import json
import math
import platform
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from nin_jax import main
from nin_jax.console import fail, say
from nin_jax.data import memory
from nin_jax.data.cache import cache_dir
from nin_jax.devices.cpu_memory import reuse_memory
from nin_jax.devices.mesh import host, replicate, replicated_like
from nin_jax.devices.replicas import compile_replicas
from nin_jax.errors import ExitError
from nin_jax.runs.provenance import commit, versions
from nin_jax.training import step
from nin_jax.training.build import Run
from nin_jax.training.loop import DEAD_AFTER

WINDOW = 25  # updates that the loss is averaged over
STARTED = 0.95  # of ln(classes)
RESULTS = Path(__file__).parent / "results" / "start.csv"
DOC = Path(__file__).parent.parent / "docs" / "starting.md"
MARKS = "<!-- start table -->", "<!-- end table -->"
FIELDS = [
    "config",
    "overrides",
    "seed",
    "started_at",
    "loss",
    "dead_classes",
    "updates",
    "seconds",
    "machine",
    "versions",
]
FIELDS += ["commit", "date"]


def updates_to_start(run: Run, seed: int, limit: int, compiled, arrays, stats, epoch_updates: int) -> dict:
    """Trains one seed until it has started, or `limit` updates; returns the row's measured part."""
    recipe = run.recipe(epoch_updates)
    make = jax.jit(lambda s: step.init_state(recipe, s, run.info.image_shape))
    seed_array = replicate(jnp.uint32(seed), run.mesh)
    state = replicate(make(seed_array), run.mesh)
    # Each seed has an order of its own.
    source = memory.Shuffled(arrays, run.config.batch_size, seed, run.mesh)
    losses, constant_for, begin = [], np.zeros(run.info.classes), time.perf_counter()
    row = {"seed": seed, "started_at": None}
    for update in range(1, limit + 1):
        state, metrics = compiled(state, source.at(update - 1), stats, seed_array)
        metrics = host(metrics)
        losses.append(float(metrics["loss"][0]))
        row["loss"] = round(float(np.mean(losses[-WINDOW:])), 4)
        row["dead_classes"] = int(metrics["constant"].sum())
        constant_for = (constant_for + 1) * metrics["constant"][0]
        row["updates"] = update
        if update % 50 == 0:
            say(f"seed {seed}, update {update}: loss {row['loss']}, {row['dead_classes']} dead classes")
        if update >= WINDOW and row["loss"] < STARTED * math.log(run.info.classes):
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
    lines = ["| config | started | at update, by seed |", "|---|---|---|"]
    for config, these in rows.items():
        started = [r for r in these if r["started_at"] not in said]
        updates = ", ".join(f"{r['seed']}: {said.get(r['started_at'], '{started_at}').format(**r)}" for r in these)
        lines.append(f"| `{config}` | {len(started)} of {len(these)} | {updates} |")
    return "\n".join(lines)


def write_table() -> None:
    """Puts `table` into docs/starting.md, between its two marks."""
    before, rest = DOC.read_text().split(MARKS[0])
    DOC.write_text(f"{before}{MARKS[0]}\n\n{table()}\n\n{MARKS[1]}{rest.split(MARKS[1])[1]}")


def measure(argv: list[str]) -> None:
    """Runs the command line above."""
    mine = {w.split("=")[0]: w.split("=", 1)[1] for w in argv[1:] if w.startswith(("--seeds=", "--updates="))}
    rest = [w for w in argv if not w.startswith(("--seeds=", "--updates="))]
    command = main.parse(rest)
    reuse_memory()
    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
    run = Run(command.config)
    split = run.load(run.config.train_split)
    stats = run.fitted(Path("/nonexistent"), write=False, train=split)
    assert isinstance(split, tuple), "only data sets that fit in memory"
    arrays = run.on_devices(split)
    source = memory.Shuffled(arrays, run.config.batch_size, 0, run.mesh)
    epoch_updates = source.examples // run.config.batch_size
    recipe = run.recipe(epoch_updates)
    like = replicated_like(jax.eval_shape(lambda: step.init_state(recipe, 0, run.info.image_shape)), run.mesh)
    arguments = like, source.like, stats, replicate(jnp.uint32(0), run.mesh)
    compiled = compile_replicas(step.train_steps(recipe, 1), arguments, run.mesh, run.config.mapper, donate=(0,))
    known = {
        "config": next(w.split("=", 1)[1] for w in rest if w.startswith("--config=")),
        "overrides": " ".join(w for w in rest[1:] if w.startswith("--config.") and "data_dir" not in w),
        "machine": f"{platform.machine()}, {run.mesh.size} x {run.mesh.devices.flat[0].device_kind}",
        "versions": json.dumps({k: v for k, v in versions().items() if k in ("python", "jax", "flax", "optax")}),
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
    }
    for seed in map(int, mine.get("--seeds", "0,1,2,3,4").split(",")):
        row = known | updates_to_start(
            run, seed, int(mine.get("--updates", 600)), compiled, arrays, stats, epoch_updates
        )
        say(f"seed {seed}: started at update {row['started_at']}, stopped after {row['updates']}")
        new = not RESULTS.exists()
        with open(RESULTS, "a", newline="") as f:
            writer = csv.DictWriter(f, FIELDS)
            if new:
                writer.writeheader()
            writer.writerow(row)


if __name__ == "__main__":
    try:
        write_table() if "--table" in sys.argv else measure(sys.argv)
    except ExitError as ending:
        fail(str(ending))
        raise SystemExit(ending.exit_code) from None
