"""Inside a run: the cost of the input, the cost of a checkpoint, and peak memory."""

from __future__ import annotations

import math
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from benchmarks import measure
from benchmarks.runs import Ours, on_noise
from nin_jax import config as config_lib
from nin_jax.data import memory
from nin_jax.runs.checkpoint import Checkpoints
from nin_jax.training.build import Run
from nin_jax.training.state import init_state

EXAMPLES = 50_000 // 128 * 128  # of CIFAR's size


def input_cost(drawn: Ours) -> dict[str, Any]:
    """A step on batches drawn from all images against a step on the same batch again and again."""
    with mock.patch.object(memory, "batch_indices", lambda order, step, size: jnp.arange(size)):
        same = on_noise("cifar10", 128, examples=EXAMPLES)
    sides = {"drawn batches": drawn.update, "the same batch": same.update}
    return {"what": "input"} | measure.alternate(sides, rounds=15, units=drawn.length)


def checkpoint_cost(ours: Ours) -> dict[str, Any]:
    """Seconds that the loop waits for a save, and until the checkpoint is on disk with nothing else to do."""
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
    kept = {name: [round(s, 4) for s in values[1:]] for name, values in seconds.items()}  # the first creates folders
    return row | {"seconds": kept, "median": {name: statistics.median(values) for name, values in kept.items()}}


def peak(name: str, batch: int, size: int) -> dict[str, Any]:
    """Peak memory of a run with nothing cached that evaluates and saves, and the terms of docs/performance.md's formula."""
    splits = {"train_split": f"train[:{2 * batch}]", "eval_split": "train"}  # the latter is the largest
    keys = {"dataset": f"synthetic(size={size})", "batch_size": batch, "epochs": 2, **splits}
    made = config_lib.experiment(name)
    made.update_from_flattened_dict(keys)
    config = config_lib.check(made)
    run = Run(config)
    recipe = run.recipe(2)
    examples = run.info.splits["train"]
    evaluated = memory.even_batches(examples, config.eval_batch_size or batch, 1)

    def maps(variables: Any) -> Any:
        return recipe.model.apply(variables, jnp.zeros((batch, *run.info.image_shape)), train=False)[1]

    state = jax.eval_shape(lambda: init_state(recipe, jnp.uint32(0), run.info.image_shape))
    activations = jax.eval_shape(maps, state.variables)
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "nin_jax.main", f"--config=experiments/{name}.py", f"--workdir={scratch}/run"]
        command += [f"--config.{key}={value}" for key, value in keys.items()]
        process = measure.start(command, scratch)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise AssertionError(f"{' '.join(command)}: {os.waitstatus_to_exitcode(status)}")
    kept = sum(m.size * 4 for m in jax.tree.leaves(activations))
    return {
        "what": "memory",
        "network": name,
        "batch": batch,
        "peak": usage.ru_maxrss * 1024,
        "data": math.prod((2 * batch + examples, *run.info.image_shape)),
        "state": sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(state)),
        "maps": kept,
        "evaluated": kept * evaluated // batch,
    }


def main() -> None:
    """All of them; peaks first, since Linux counts a parent's memory at the fork as part of its child's peak."""
    memory = [peak(*case) for case in (("cifar10", 128, 32), ("mnist", 128, 28))]
    ours = on_noise("cifar10", 128, examples=EXAMPLES)
    costs = [input_cost(ours), checkpoint_cost(ours)]
    measure.save("inside", costs + memory)
