"""The compiled functions of a run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from nin_jax.data.source import TrainSource
from nin_jax.devices.mesh import replicate
from nin_jax.devices.replicas import compile_replicas
from nin_jax.training.evaluate import Evaluator
from nin_jax.training.optim import plateau_scale
from nin_jax.training.state import Recipe, TrainState
from nin_jax.training.step import train_steps


class Programs:
    """The update, the evaluation and two checks of the state, compiled in this order by a thread.

    Args:
      recipe: what an update is made of.
      source, evaluator: what it is trained and evaluated on.
      like: the shapes of the state, with shardings.
      stats, seed: the fitted preprocessing and the run's seed, on the devices.
      schedule: the learning rate by update.
      mesh, mapper: see `compile_replicas`.
    """

    def __init__(
        self,
        recipe: Recipe,
        source: TrainSource,
        evaluator: Evaluator,
        like: TrainState,
        stats: Any,
        seed: jax.Array,
        schedule: Callable[[Any], jax.Array],
        mesh: Mesh,
        mapper: str,
    ):
        self.stats, self.seed, self.evaluator = stats, seed, evaluator
        self.count = functools.cache(lambda n: replicate(np.int32(n), mesh))

        def look(state: TrainState) -> tuple[jax.Array, jax.Array]:
            rate = schedule(state.step - 1) * plateau_scale(state.opt_state)
            return rate, jnp.all(jnp.stack([jnp.isfinite(p).all() for p in jax.tree.leaves(state.params)]))

        self.thread = ThreadPoolExecutor(1, initializer=jax.enable_x64(False).__enter__)  # as `compiled_in_32_bits`
        steps = train_steps(recipe, source.draw, source.updates_per_dispatch)
        arguments = like, source.like, stats, seed, self.count(1)
        split = False, source.split, False, False, False
        self.update = self.thread.submit(compile_replicas, steps, arguments, mesh, mapper, split=split, donate=(0,))
        self.evaluate = self.thread.submit(evaluator.compile, [like.variables])
        self.look = self.thread.submit(lambda: jax.jit(look).lower(like).compile())

    def updates(self, n: int) -> Callable[[TrainState, Any], tuple[TrainState, Any]]:
        """The function `(state, data) -> (state, metrics)` of n updates, see `step.train_steps`. Donates the state."""
        update, count = self.update.result(), self.count(n)
        return lambda state, data: update(state, data, self.stats, self.seed, count)

    def evaluation(self) -> Evaluator:
        """The evaluator, compiled."""
        self.evaluate.result()
        return self.evaluator

    def learning_rate(self, state: TrainState) -> float:
        """The learning rate of the last update."""
        return float(self.look.result()(state)[0])

    def finite(self, state: TrainState) -> bool:
        """Whether all parameters are finite."""
        return bool(self.look.result()(state)[1])

    def close(self) -> None:
        """Ends the thread; programs that it has not begun are not compiled."""
        self.thread.shutdown(cancel_futures=True)
