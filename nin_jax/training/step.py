"""The state of a run and the pure per-replica steps that train it, evaluate it and predict with it.

Randomness is a function of (seed, step, index of the example in the global batch) and nothing else, so a resumed run
is the same run, and a run on eight devices is the run on one, up to the order of a sum.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import lax

from nin_jax.data import fitted, memory
from nin_jax.devices.mesh import AXIS, shard_of_batch

AUGMENT, DROPOUT, INIT = 1, 2, 3  # streams of random numbers


@flax.struct.dataclass
class TrainState:
    """The whole state of a run.

    Attributes:
      step: int32 scalar, finished updates.
      params: what is trained.
      opt_state: of the optimiser.
      batch_stats: running means and variances of batch normalisation; empty without.
      average: exponential mean of `current` over the updates, with `optimizer.average`; else None.
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
        """Flax variables of the network that is evaluated: the average where there is one."""
        return self.current if self.average is None else self.average


class Recipe(NamedTuple):
    """What a step is made of; all of it static."""

    model: nn.Module
    task: ModuleType
    objective: Callable[[jax.Array, jax.Array], jax.Array]  # what an update lowers, of each example
    preprocess: list[fitted.Op]
    augment: list[fitted.Op]
    batch_size: int
    optimizer: optax.GradientTransformationExtraArgs
    average: float = 0.0  # how much of the average an update keeps; 0: there is none
    accumulate: int = 1  # parts that a replica computes its share of a batch in


def stream(seed: jax.Array, which: int) -> jax.Array:
    """The random key of one stream of a run's seed (uint32 scalar)."""
    return jax.random.fold_in(jax.random.key(seed), which)


def init_variables(model: nn.Module, seed: int | jax.Array, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Initial "params" and "batch_stats" of a model for images `[H, W, C]`."""
    image = jnp.zeros((1, *image_shape), jnp.float32)
    variables = model.init({"params": stream(jnp.uint32(seed), INIT)}, image, train=False)
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


def state_of(recipe: Recipe, params: Any, batch_stats: Any) -> TrainState:
    """The state before the first update, of a network with these variables."""
    state = TrainState(jnp.zeros((), jnp.int32), params, recipe.optimizer.init(params), batch_stats)
    # A copy: an update takes over the memory of its state, of each array once.
    return dataclasses.replace(state, average=jax.tree.map(jnp.copy, state.current)) if recipe.average else state


def init_state(recipe: Recipe, seed: int, image_shape: tuple[int, int, int]) -> TrainState:
    """The state before the first update."""
    return state_of(recipe, **init_variables(recipe.model, seed, image_shape))


def train_steps(recipe: Recipe, length: int):
    """Makes the per-replica function of `length` updates, all of one epoch.

    Returns:
      `(state, data, stats, seed: uint32) -> (state, metrics)`. `data` is the split, `memory.Arrays`, of which each update
      draws its batch, or, where `length` is 1, the `memory.Batch` of the update. Metrics are each float32 `[length]` over
      the global batch: those of the task are means; "constant" `[length, num_classes]` is 1 where a class has the same
      logit for every image, which is how a class whose map is dead shows.
    """

    def update(state: TrainState, batch: memory.Batch, stats, seed):
        size = recipe.batch_size // lax.axis_size(AXIS)
        examples = shard_of_batch(jnp.arange(recipe.batch_size))
        luck = jax.random.fold_in(stream(seed, AUGMENT), state.step)
        dropout = jax.random.fold_in(stream(seed, DROPOUT), state.step)

        def part(image: jax.Array, label: jax.Array, example: jax.Array):
            """Gradients, sums of the metrics, largest and negated smallest logits, batch statistics of some examples."""
            image = fitted.apply(recipe.preprocess, stats, image)
            if recipe.augment:
                keys = jax.vmap(lambda i: jax.random.fold_in(luck, i))(example)
                image = fitted.augment(recipe.augment, keys, image)

            def loss(params):
                variables = {"params": params, "batch_stats": state.batch_stats}
                (logits, _), moved = recipe.model.apply(
                    variables, image, train=True, example=example, rngs={"dropout": dropout}, mutable=["batch_stats"]
                )
                metrics = recipe.task.per_example(logits, label)
                objective = jnp.sum(recipe.objective(logits, label)) / size
                return objective, (metrics, logits, moved.get("batch_stats", {}))

            grads, (metrics, logits, batch_stats) = jax.grad(loss, has_aux=True)(state.params)
            return grads, jax.tree.map(jnp.sum, metrics), (jnp.max(logits, 0), jnp.max(-logits, 0)), batch_stats

        shares = jax.tree.map(
            lambda a: a.reshape(recipe.accumulate, -1, *a.shape[1:]), (batch.image, batch.label, examples)
        )

        def add(total, share):
            grads, *rest = part(*share)
            return jax.tree.map(jnp.add, total, grads), rest

        nothing = jax.tree.map(jnp.zeros_like, state.params)
        grads, (sums, extremes, batch_stats) = _scan(add, nothing, shares)
        sums = jax.tree.map(lambda a: jnp.sum(a, 0), sums)
        batch_stats = jax.tree.map(lambda a: a[0], batch_stats)  # with more than one part there are none
        grads, means = lax.pmean((grads, jax.tree.map(lambda s: s / size, sums)), AXIS)
        highest, lowest = lax.pmax(jax.tree.map(lambda a: jnp.max(a, 0), extremes), AXIS)
        constant = (highest + lowest == 0).astype(jnp.float32)
        updates, opt_state = recipe.optimizer.update(grads, state.opt_state, state.params, value=means["error"])
        params = optax.apply_updates(state.params, updates)
        state = TrainState(state.step + 1, params, opt_state, batch_stats, state.average)
        if recipe.average:
            # Less in the first updates, so that what the network started from is soon forgotten.
            n = state.step.astype(jnp.float32)
            keep = jnp.minimum(recipe.average, n / (n + 10))
            state = dataclasses.replace(state, average=optax.incremental_update(state.current, state.average, 1 - keep))
        return state, means | {"constant": constant}

    def steps(state: TrainState, data: memory.Arrays | memory.Batch, stats, seed: jax.Array):
        if isinstance(data, memory.Batch):
            assert length == 1, length
            return _scan(lambda s, _: update(s, data, stats, seed), state, jnp.arange(length))

        def draw(step: jax.Array) -> memory.Batch:
            rows = shard_of_batch(memory.batch_indices(data.order, step, recipe.batch_size))
            return memory.Batch(data.image[rows], data.label[rows])

        return _scan(lambda s, _: update(s, draw(s.step), stats, seed), state, jnp.arange(length))

    return steps


def predict(recipe: Recipe, variables, stats, image: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Logits `[B, K]` and maps of uint8 images `[B, H, W, C]`, preprocessed, with dropout off."""
    output: Any = recipe.model.apply(variables, fitted.apply(recipe.preprocess, stats, image), train=False)
    return output


def eval_steps(recipes: Sequence[Recipe], length: int, batch_size: int, *, mirrored: bool = False):
    """Makes the per-replica function that evaluates `length` batches by networks that vote.

    Args:
      recipes: of each network; the first one's task counts.
      length: number of batches.
      batch_size: pictures of each, over all replicas; not looked at where `data` is a `memory.Batch`.
      mirrored: whether the mirror image of each view is seen too.

    Returns:
      `(variables, data, stats, first: int32) -> sums`: for each batch from number `first` on, float32 `[length]`, the
      sum of each metric of the task over its examples, and "examples", their number. `variables` and `stats` are tuples
      with those of each network. `data` is the split, `memory.Arrays`, of which batches past the end have no examples, or,
      where `length` is 1, the `memory.Batch` to be evaluated.
    """
    task = recipes[0].task

    def evaluate(variables, stats, batch: memory.Batch):
        """Sums over the batch, whose pictures have one view or more."""
        views = jnp.concatenate([batch.image, batch.image[..., ::-1, :]], 1) if mirrored else batch.image
        images = views.reshape(-1, *views.shape[2:])
        every = [predict(r, v, s, images)[0] for r, v, s in zip(recipes, variables, stats, strict=True)]
        opinions = jnp.concatenate([logits.reshape(*views.shape[:2], -1) for logits in every], 1)
        logits = opinions[:, 0] if opinions.shape[1] == 1 else task.combine(opinions)
        metrics = task.per_example(logits, batch.label) | {"examples": jnp.ones_like(batch.weight)}
        return lax.psum(jax.tree.map(lambda m: jnp.sum(m * batch.weight), metrics), AXIS)

    def steps(variables, data: memory.Arrays | memory.Batch, stats, first: jax.Array):
        if isinstance(data, memory.Batch):
            assert length == 1, length
            return jax.tree.map(lambda a: a[None], evaluate(variables, stats, data))

        def draw(number: jax.Array) -> memory.Batch:
            index, weight = memory.eval_indices(number, data.label.shape[0], batch_size)
            index, weight = shard_of_batch(index), shard_of_batch(weight)
            return memory.Batch(data.image[index][:, None], data.label[index], weight)

        numbers = first + jnp.arange(length)
        return _scan(lambda _, number: (None, evaluate(variables, stats, draw(number))), None, numbers)[1]

    return steps


def _scan(f, carry, xs: Any):
    """`lax.scan`, but without a loop where there is one step: a loop costs a CPU a tenth of the time."""
    if jax.tree.leaves(xs)[0].shape[0] > 1:
        return lax.scan(f, carry, xs)
    carry, y = f(carry, jax.tree.map(lambda x: x[0], xs))
    return carry, jax.tree.map(lambda a: a[None], y)
