"""Our side of the measurements: a real experiment, compiled as the training loop compiles it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nin_jax import config as config_lib
from nin_jax.config import Config
from nin_jax.data.splits import Split
from nin_jax.devices.mesh import host, replicate
from nin_jax.devices.replicas import compile_replicas
from nin_jax.training.build import Run
from nin_jax.training.evaluate import Evaluator
from nin_jax.training.state import init_state
from nin_jax.training.step import train_steps


def noise(run: Run, examples: int) -> Split:
    """uint8 images and int32 labels of the data set's shape: the speed of a step does not depend on what they show."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (examples, *run.info.image_shape), np.uint8)
    return images, rng.integers(0, run.info.classes, examples).astype(np.int32)


class Ours:
    """The compiled step of an experiment, its state, and its evaluation.

    Args:
      config: a checked config.
      split: images and labels to train on and to evaluate, or a number of examples of noise.
      stats: the fitted preprocessing; None: fitted on at most 2,048 images, which takes no time.
      length: steps per dispatch; None: as many as a run has.
    """

    def __init__(self, config: Config, split: Split | int, stats: Any = None, length: int | None = None):
        self.config, self.run, self.step = config, Run(config), 0
        self.split = noise(self.run, split) if isinstance(split, int) else split
        if stats is None:
            few = self.split[0][:2048], self.split[1][:2048]
            stats = self.run.fitted(Path("/nonexistent"), write=False, train=few)
        self.stats, updates = stats, len(self.split[1]) // config.batch_size
        self.recipe, self.source = self.run.recipe(updates), self.run.training(self.split)
        self.seed, self.data = replicate(jnp.uint32(config.seed), self.run.mesh), self.source.at(0)
        init = jax.jit(lambda seed: init_state(self.recipe, seed, self.run.info.image_shape))
        self.state = replicate(init(self.seed), self.run.mesh)
        self.length = length or min(self.source.updates_per_dispatch, updates)
        self.count = replicate(np.int32(self.length), self.run.mesh)
        steps = train_steps(self.recipe, self.source.draw, self.length)
        arguments = self.state, self.data, self.stats, self.seed, self.count
        self.compiled = compile_replicas(steps, arguments, self.run.mesh, config.mapper, donate=(0,))

    @functools.cached_property
    def evaluator(self) -> Evaluator:
        """Compiled when it is first called."""
        source = self.run.evaluation(self.split)
        return Evaluator([self.recipe], self.run.mesh, self.config.mapper, source, [self.stats])

    def dispatch(self) -> Any:
        """The metrics of `length` more steps, still on the devices."""
        data = self.source.at(self.step)
        self.state, metrics = self.compiled(self.state, data, self.stats, self.seed, self.count)
        self.step += self.length
        return metrics

    def update(self, times: int = 1) -> None:
        """So many dispatches, as the training loop makes them: it reads the metrics of one while the next one runs."""
        waiting = None
        for _ in range(times):
            metrics = self.dispatch()
            if waiting is not None:
                host(waiting)
            waiting = metrics
        host(waiting)

    def evaluate(self) -> dict[str, float]:
        """The loss and errors over all examples."""
        result = self.evaluator([self.state.variables])
        assert result is not None
        return result


def on_noise(name: str, batch: int, precision: str = "float32", examples: int = 2048, **changes: Any) -> Ours:
    """An experiment on noise, in batches of so many, with other keys of its config such as {"model.dropout": 0.0}."""
    config = config_lib.experiment(name)
    config.update_from_flattened_dict({"batch_size": batch, "precision": precision, **changes})
    return Ours(config_lib.check(config), examples)
