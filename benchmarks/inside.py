"""Inside a run: what input costs, what a checkpoint costs, and how much memory it takes."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from benchmarks import measure
from benchmarks.runs import Ours
from nin_jax.checkpoint import Checkpoints
from nin_jax.pipeline import memory

EXAMPLES = 50_000 // 128 * 128  # of CIFAR's size


def input_cost() -> dict[str, Any]:
    """An update on batches drawn from all pictures against the same on one and the same batch."""
    drawn = Ours("cifar10", 128, examples=EXAMPLES)
    with mock.patch.object(memory, "batch_indices", lambda order, step, size: jnp.arange(size)):
        same = Ours("cifar10", 128, examples=EXAMPLES)
    sides = {"drawn batches": lambda: drawn.update(3), "the same batch": lambda: same.update(3)}
    return {"what": "input"} | measure.alternate(sides, rounds=7, units=3 * drawn.length)


def checkpoint_cost() -> dict[str, Any]:
    """Seconds that a save keeps the loop waiting, and until the checkpoint is on disk with nothing else to do."""
    ours = Ours("cifar10", 128)
    row: dict[str, Any] = {"what": "checkpoint", "bytes": sum(a.nbytes for a in jax.tree.leaves(ours.state))}
    seconds: dict[str, list[float]] = {"save returns": [], "on disk": []}
    with tempfile.TemporaryDirectory() as scratch:
        checkpoints = Checkpoints(Path(scratch), keep=2)
        for number in range(8):
            begin = time.perf_counter()
            checkpoints.save(number + 1, ours.state, {}, {"error_pct": 50.0 - number})
            seconds["save returns"].append(time.perf_counter() - begin)
            checkpoints.wait()
            seconds["on disk"].append(time.perf_counter() - begin)
        checkpoints.close()
    kept = {name: [round(s, 4) for s in values[1:]] for name, values in seconds.items()}  # the first opens the folder
    return row | {"seconds": kept, "median": {name: sorted(v)[len(v) // 2] for name, v in kept.items()}}


def largest() -> int:
    """Bytes of memory that this process has had at most, as Linux counts them."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024


def peak(name: str, batch: int) -> dict[str, Any]:
    """A process' largest size after three updates, what XLA planned for it, and the formula of docs/performance.md."""
    before = largest()
    ours = Ours(name, batch)  # few examples: fitting the preprocessing is not what is looked at
    ours.update(3)
    compiled = getattr(ours.compiled, "func", ours.compiled)
    variables = jax.eval_shape(
        lambda: ours.recipe.model.init(jax.random.key(0), jnp.zeros((1, *ours.run.info.image_shape)), train=False)
    )
    _, maps = jax.eval_shape(
        lambda v: ours.recipe.model.apply(v, jnp.zeros((batch, *ours.run.info.image_shape)), train=False), variables
    )
    return {
        "what": "memory",
        "network": name,
        "batch": batch,
        "imports": before,
        "peak": largest(),
        "planned": compiled.memory_analysis().temp_size_in_bytes,
        "data": ours.data.image.nbytes + ours.data.label.nbytes,
        "state": sum(a.nbytes for a in jax.tree.leaves(ours.state)),
        "activations": sum(m.size * 4 for m in jax.tree.leaves(maps)),
    }


def main() -> None:
    """All of them; each peak in a process of its own."""
    rows = [input_cost(), checkpoint_cost()]
    for name, batch in (("cifar10", 128), ("cifar10", 512), ("mnist", 128)):
        command = [sys.executable, "-m", "benchmarks.inside", name, str(batch)]
        rows.append(
            json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout.splitlines()[-1])
        )
    measure.save("inside", rows)


if __name__ == "__main__":
    from nin_jax import parallel

    parallel.keep_freed_memory()
    print(json.dumps(peak(sys.argv[1], int(sys.argv[2]))))
