"""Our side of the measurements: a real experiment, compiled, on pictures of noise of its data set's shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nin_jax import config as config_lib
from nin_jax.data.splits import Split
from nin_jax.devices.mesh import host, replicate
from nin_jax.devices.replicas import compile_replicas, steps_per_dispatch
from nin_jax.training import step
from nin_jax.training.build import Run
from nin_jax.training.evaluate import Evaluator


def noise(run: Run, examples: int) -> Split:
    """uint8 pictures and int32 labels of the data set's shape: how long a step takes does not depend on what is seen."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (examples, *run.info.image_shape), np.uint8)
    return images, rng.integers(0, run.info.classes, examples).astype(np.int32)


class Ours:
    """An experiment's update and evaluation.

    Args:
      name: of the experiment.
      batch: images an update.
      precision: "float32" or "bfloat16".
      examples: of noise; a multiple of `batch`.
      changes: other keys of the config, such as {"model.dropout": 0.0}.
    """

    def __init__(self, name: str, batch: int, precision: str = "float32", examples: int = 2048, **changes: Any):
        config = config_lib.experiment(name)
        config.update_from_flattened_dict({"batch_size": batch, "precision": precision, **changes})
        self.run = Run(config_lib.check(config))
        self.config = self.run.config
        self.recipe = self.run.recipe(examples // batch)
        split = noise(self.run, examples)
        few = split[0][:2048], split[1][:2048]  # since how long it takes to fit is not what is looked at
        self.stats = self.run.fitted(Path("/nonexistent"), write=False, train=few)
        source = self.run.training(split)
        self.source, self.data, self.step = source, source.at(0), 0
        self.seed = replicate(jnp.uint32(0), self.run.mesh)
        make = jax.jit(lambda seed: step.init_state(self.recipe, seed, self.run.info.image_shape))
        self.state = replicate(make(self.seed), self.run.mesh)
        self.evaluator = Evaluator(
            [self.recipe], self.run.mesh, self.config.mapper, self.run.evaluation(split), [self.stats]
        )
        self.length = steps_per_dispatch(examples // batch)
        arguments = self.state, self.data, self.stats, self.seed
        steps = step.train_steps(self.recipe, self.length)
        self.compiled = compile_replicas(steps, arguments, self.run.mesh, self.config.mapper, donate=(0,))

    def update(self, times: int = 1) -> None:
        """So many dispatches of updates, as the loop makes them: one of them waits to be read."""
        waiting = None
        for _ in range(times):
            data = self.source.at(self.step)
            self.state, metrics = self.compiled(self.state, data, self.stats, self.seed)
            self.step += self.length
            if waiting is not None:
                host(waiting)
            waiting = metrics
        host(waiting)

    def evaluate(self) -> dict[str, float]:
        """All examples once."""
        result = self.evaluator([self.state.variables])
        assert result is not None
        return result
