"""The one evaluation path, used by the loop and by --mode=eval: every example of a split exactly once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nin_jax import config as config_lib
from nin_jax import parallel, step
from nin_jax.build import Run
from nin_jax.checkpoint import Checkpoints
from nin_jax.config import Config
from nin_jax.errors import Mistake
from nin_jax.pipeline import memory
from nin_jax.report import progress, say


class Evaluator:
    """Evaluates a network's variables on one split; compiled once, at the first call or before it.

    Args:
      recipe: what the steps are made of.
      mesh, mapper: see `parallel.compile_replicas`.
      data: the split, on the devices.
      stats: the fitted preprocessing, on the devices.
    """

    def __init__(self, recipe: step.Recipe, mesh, mapper: str, data: memory.Arrays, stats: Any):
        self.data, self.stats = data, stats
        self.batches = -(-data.label.shape[0] // recipe.batch_size)
        self.length = parallel.steps_per_dispatch(self.batches)
        self.recipe, self.mesh, self.mapper, self.compiled = recipe, mesh, mapper, None

    def compile(self, variables: Any) -> None:
        """Compiles for variables like these, if that has not been done."""
        if self.compiled is None:
            arguments = variables, self.data, self.stats, jnp.int32(0)
            steps = step.eval_steps(self.recipe, self.length)
            self.compiled = parallel.compile_replicas(steps, arguments, self.mesh, self.mapper)

    def __call__(self, variables: Any, stopped: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
        """The mean loss (natural logarithm), error in per cent and number of examples; None if `stopped` says so.

        Sums are taken in float64 in the order of the batches, so the result does not depend on the dispatch length.
        """
        self.compile(variables)
        assert self.compiled is not None
        parts = []
        with progress() as bar:
            task = bar.add_task("evaluating", total=self.batches)
            for first in range(0, self.batches, self.length):
                if stopped():
                    return None
                parts.append(parallel.host(self.compiled(variables, self.data, self.stats, jnp.int32(first))))
                bar.update(task, advance=self.length)
        sums = {key: float(np.sum(np.concatenate([p[key] for p in parts]), dtype=np.float64)) for key in parts[0]}
        examples = round(sums.pop("examples"))
        assert examples == self.data.label.shape[0], (examples, self.data.label.shape[0])
        return {"loss": sums["loss"] / examples, "error_pct": 100 * sums["error"] / examples, "examples": examples}


def evaluate_run(config: Config, workdir: Path) -> dict[str, Any]:
    """--mode=eval: evaluates the newest checkpoint of a run directory under `config`, and changes nothing in it.

    Keys that differ from the run's own config are named on stderr; preprocessing other than the run's is fitted on the
    training split. The last line printed is one JSON object: "split", "examples", "error_pct", "loss", "step".
    """
    run = Run(config)
    try:
        theirs = config_lib.to_dict(config_lib.from_dict(json.loads((workdir / "config.json").read_text())))
        every = config_lib.differences(theirs, config_lib.to_dict(config))
        differing = [line for line in every if line.split(":")[0] not in config_lib.NOT_THE_RUN]
    except FileNotFoundError as error:
        raise Mistake(f"--workdir={workdir} holds no run; train first, or name the directory of a run") from error
    except (OSError, ValueError, AttributeError) as error:
        raise Mistake(f"{workdir / 'config.json'} cannot be read: {error}") from error
    recipe = run.recipe(1)
    try:
        number, state = restore(run, recipe, workdir)
    except Mistake as mistake:
        raise Mistake(
            f"{mistake}; differs from the run: {'; '.join(differing)}" if differing else str(mistake)
        ) from None
    for line in differing:
        say(f"differs from the run: {line}")
    data = run.on_devices(run.load(config.eval_split))
    stats = run.fitted(workdir, write=False)
    result = Evaluator(recipe, run.mesh, config.mapper, data, stats)(state.variables)
    assert result is not None
    line = {"split": config.eval_split, **{k: result[k] for k in ("examples", "error_pct", "loss")}, "step": number}
    print(json.dumps(line), flush=True)
    return line


def restore(run: Run, recipe: step.Recipe, workdir: Path) -> tuple[int, step.TrainState]:
    """Step and state of the newest good checkpoint of a run directory, which is only read. Raises `Mistake`."""
    if not (workdir / "checkpoints").is_dir():
        raise Mistake(f"--workdir={workdir} holds no checkpoint; train first, or name the directory of a run")
    shapes = jax.eval_shape(lambda: step.init_state(recipe, 0, run.info.image_shape))
    found = Checkpoints(workdir, read_only=True).restore(parallel.replicated_like(shapes, run.mesh))
    if not found:
        raise Mistake(f"--workdir={workdir} holds no checkpoint that can be used with this config")
    return found[0], found[1]
