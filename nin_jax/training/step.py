"""The pure functions that every replica runs: updates, evaluation, prediction."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from nin_jax.data import fitted
from nin_jax.data.source import Batch
from nin_jax.devices.mesh import AXIS, shard_of_batch
from nin_jax.training.state import AUGMENT, DROPOUT, Recipe, TrainState, random_key

Draw = Callable[[Any, jax.Array], Batch]  # of a `TrainSource` or an `EvalSource`

EMA_WARMUP = 10  # updates; after n of them the decay is at most n / (n + 10), to forget the random weights soon


def train_steps(recipe: Recipe, draw: Draw, most: int = 1):
    """Makes the per-replica function of several updates of one epoch.

    Args:
      recipe: what an update is made of.
      draw: `(data, step) -> Batch`, a replica's part of the batch of an update.
      most: the most updates of one call. If it is 1 there is no loop, which would cost a CPU a tenth of the time.

    Returns:
      `(state, data, stats, seed: uint32, count: int32) -> (state, metrics)`, which makes `count` updates, at most
      `most`. Metrics are over the global batch, float32 `[most]`, of which the first `count` rows are filled: the means
      of the task's metrics; and "constant" `[most, num_classes]`, 1 for a class with the same logit for every image, as
      a dead class has.
    """

    def update(state: TrainState, data: Any, stats: Any, seed: jax.Array):
        batch = draw(data, state.step)
        example = shard_of_batch(jnp.arange(recipe.batch_size))
        part = len(example)  # of the batch, on this replica
        augment_key = jax.random.fold_in(random_key(seed, AUGMENT), state.step)
        dropout_key = jax.random.fold_in(random_key(seed, DROPOUT), state.step)

        def gradient(image: jax.Array, label: jax.Array, example: jax.Array):
            """Gradients; sums of the metrics, largest and negated smallest logits, batch statistics of a microbatch."""
            image = fitted.apply(recipe.preprocess, stats, image)
            if recipe.augment:
                keys = jax.vmap(lambda i: jax.random.fold_in(augment_key, i))(example)
                image = fitted.augment(recipe.augment, keys, image)

            def loss(params):
                variables = {"params": params, "batch_stats": state.batch_stats}
                (logits, _), moved = recipe.apply(
                    variables,
                    image,
                    train=True,
                    example=example,
                    rngs={"dropout": dropout_key},
                    mutable=["batch_stats"],
                )
                metrics = recipe.task.per_example(logits, label)
                objective = jnp.sum(recipe.objective(logits, label)) / part
                return objective, (metrics, logits, moved.get("batch_stats", {}))

            grads, (metrics, logits, batch_stats) = jax.grad(loss, has_aux=True)(state.params)
            return grads, (jax.tree.map(jnp.sum, metrics), (jnp.max(logits, 0), jnp.max(-logits, 0)), batch_stats)

        microbatches = jax.tree.map(
            lambda a: a.reshape(recipe.accumulate, -1, *a.shape[1:]), (batch.image, batch.label, example)
        )

        def accumulate(i: Any, total: Any):
            grads, rest = gradient(*jax.tree.map(lambda a: a[i], microbatches))
            return jax.tree.map(jnp.add, total, grads), rest

        nothing = jax.tree.map(jnp.zeros_like, state.params)
        grads, (sums, extremes, batch_stats) = _repeat(accumulate, nothing, recipe.accumulate, recipe.accumulate)
        sums = jax.tree.map(lambda a: jnp.sum(a, 0), sums)
        batch_stats = jax.tree.map(lambda a: a[0], batch_stats)  # batch norm allows one microbatch only
        grads, means = lax.pmean((grads, jax.tree.map(lambda s: s / part, sums)), AXIS)
        highest, lowest = lax.pmax(jax.tree.map(lambda a: jnp.max(a, 0), extremes), AXIS)
        constant = (highest + lowest == 0).astype(jnp.float32)
        updates, opt_state = recipe.optimizer.update(grads, state.opt_state, state.params, value=means["error"])
        params = optax.apply_updates(state.params, updates)
        state = TrainState(state.step + 1, params, opt_state, batch_stats, state.average)
        if recipe.ema_decay:
            n = state.step.astype(jnp.float32)
            decay = jnp.minimum(recipe.ema_decay, n / (n + EMA_WARMUP))
            average = optax.incremental_update(state.current, state.average, 1 - decay)
            state = dataclasses.replace(state, average=average)
        return state, means | {"constant": constant}

    def steps(state: TrainState, data: Any, stats: Any, seed: jax.Array, count: jax.Array):
        return _repeat(lambda _, state: update(state, data, stats, seed), state, count, most)

    return steps


def eval_steps(recipes: Sequence[Recipe], draw: Draw, count: int = 1, *, mirrored: bool = False):
    """Makes the per-replica function that evaluates batches by one or several networks.

    Args:
      recipes: of each network; the task is the first one's.
      draw: `(data, number) -> Batch`, a replica's part of a batch with its views and weights.
      count: batches of one call.
      mirrored: whether the mirror image of each view is seen too.

    Returns:
      `(variables, data, stats, number: int32) -> (sums, each, number + count)`: for each batch from `number` on, float32
      `[count]`, the sum of each metric of the task over its examples, and "examples", their number; and, for a task with
      metrics of a whole split (`of_split`), the logits, labels and weights of its examples, else (). `variables` and
      `stats` are tuples with those of each network.
    """
    task = recipes[0].task

    def evaluate(variables: Any, stats: Any, batch: Batch):
        """Sums over the batch, and what `of_split` needs of it."""
        views = jnp.concatenate([batch.image, batch.image[..., ::-1, :]], 1) if mirrored else batch.image
        images = views.reshape(-1, *views.shape[2:])
        every = [predict(r, v, s, images)[0] for r, v, s in zip(recipes, variables, stats, strict=True)]
        opinions = jnp.concatenate([logits.reshape(*views.shape[:2], -1) for logits in every], 1)
        logits = opinions[:, 0] if opinions.shape[1] == 1 else task.combine(opinions)
        metrics = task.per_example(logits, batch.label) | {"examples": jnp.ones_like(batch.weight)}
        sums = lax.psum(jax.tree.map(lambda m: jnp.sum(m * batch.weight), metrics), AXIS)
        each = (logits, batch.label, batch.weight) if hasattr(task, "of_split") else ()
        return sums, lax.all_gather(each, AXIS, tiled=True)

    def steps(variables: Any, data: Any, stats: Any, number: jax.Array):
        number, rows = _repeat(lambda _, n: (n + 1, evaluate(variables, stats, draw(data, n))), number, count, count)
        return *rows, number

    return steps


def predict(recipe: Recipe, variables: Any, stats: Any, image: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Logits `[B, K]` and maps of uint8 images `[B, H, W, C]`, preprocessed, with dropout off."""
    output: Any = recipe.apply(variables, fitted.apply(recipe.preprocess, stats, image), train=False)
    return output


def _repeat(f: Callable[[Any, Any], tuple[Any, Any]], carry: Any, count: Any, most: int) -> tuple[Any, Any]:
    """`carry, row = f(i, carry)`, `count` times, without a loop where `most` is 1. Returns `carry` and rows `[most, ...]`."""
    if most == 1:
        carry, row = f(0, carry)
        return carry, jax.tree.map(lambda a: a[None], row)
    f = jax.jit(f)  # traced once for the shapes and the loop
    empty = jax.eval_shape(f, jnp.int32(0), carry)[1]
    rows = jax.tree.map(lambda row: jnp.zeros((most, *row.shape), row.dtype), empty)

    def body(i: jax.Array, so_far: tuple[Any, Any]) -> tuple[Any, Any]:
        carry, row = f(i, so_far[0])
        return carry, jax.tree.map(lambda rows, row: rows.at[i].set(row), so_far[1], row)

    return lax.fori_loop(0, count, body, (carry, rows))
