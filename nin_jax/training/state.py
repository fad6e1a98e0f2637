"""The recipe of a run, which is static, and its state, which every update changes.

Random numbers are a function of (seed, step, index of the example in the global batch) and nothing else. So a resumed
run is the same run, and a run on eight devices equals the run on one, up to the order of a sum.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from nin_jax.registry import Call, FittedOp, RandomOp, Task

AUGMENT, DROPOUT, INIT = 1, 2, 3  # independent streams of random numbers


class Recipe(NamedTuple):
    """What updates and evaluations are made of. All of it is static.

    Attributes:
      model, task: entries of models/ and tasks/.
      objective: the loss to minimise: (logits, labels) -> float32 `[B]`.
      preprocess, augment: the parsed ops.
      batch_size: images of an update, over all replicas.
      optimizer: from `optim.optimizer`.
      ema_decay: of the exponential moving average of the weights (`optimizer.average` of the config); 0: none.
      accumulate: gradient accumulation: number of microbatches of a replica's part of a batch.
      precision: of the network's products, in JAX's words: "float32" is float32 on every device, "tensorfloat32" is TF32 on
        NVIDIA GPUs and three bfloat16 passes on TPUs, "bfloat16" is what a device does by default. CPUs have float32 alone.
    """

    model: nn.Module
    task: Task
    objective: Callable[[jax.Array, jax.Array], jax.Array]
    preprocess: Sequence[Call[FittedOp]]
    augment: Sequence[Call[RandomOp]]
    batch_size: int
    optimizer: optax.GradientTransformationExtraArgs
    ema_decay: float = 0.0
    accumulate: int = 1
    precision: str = "float32"

    def apply(self, variables: Any, image: jax.Array, **arguments: Any) -> Any:
        """The output of the network. Its matrix products, and those of its gradient, are computed in `precision`."""
        with jax.default_matmul_precision(self.precision):
            return self.model.apply(variables, image, **arguments)


@flax.struct.dataclass
class TrainState:
    """The whole state of a run.

    Attributes:
      step: int32 scalar, finished updates.
      params: what is trained.
      opt_state: of the optimizer.
      batch_stats: running means and variances of batch normalisation; empty without it.
      average: exponential moving average (EMA) of `current`; None without one.
    """

    step: jax.Array
    params: Any
    opt_state: optax.OptState
    batch_stats: Any = flax.struct.field(default_factory=dict)
    average: Any = None

    @property
    def current(self) -> dict[str, Any]:
        """Flax variables of the network as the last update left it."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def variables(self) -> dict[str, Any]:
        """Flax variables of the network that is evaluated: the average if there is one."""
        return self.current if self.average is None else self.average


def random_key(seed: jax.Array, stream: int) -> jax.Array:
    """The random key of one stream of a run's seed (uint32 scalar)."""
    return jax.random.fold_in(jax.random.key(seed), stream)


def init_variables(model: nn.Module, seed: int | jax.Array, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Initial "params" and "batch_stats" of a model for images `[H, W, C]`."""
    image = jnp.zeros((1, *image_shape), jnp.float32)
    variables = model.init({"params": random_key(jnp.uint32(seed), INIT)}, image, train=False)
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


def state_of(recipe: Recipe, params: Any, batch_stats: Any) -> TrainState:
    """The state before the first update, of a network with these variables."""
    state = TrainState(jnp.zeros((), jnp.int32), params, recipe.optimizer.init(params), batch_stats)
    # A copy: an update donates its state, and no buffer may be donated twice.
    return dataclasses.replace(state, average=jax.tree.map(jnp.copy, state.current)) if recipe.ema_decay else state


def init_state(recipe: Recipe, seed: int | jax.Array, image_shape: tuple[int, int, int]) -> TrainState:
    """The state before the first update."""
    return state_of(recipe, **init_variables(recipe.model, seed, image_shape))
