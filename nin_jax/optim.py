"""From config to an optax optimiser: momentum, L2, rates by parameter path, a piecewise constant schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, path_aware_map

from nin_jax.config import Config, learning_rate_factors
from nin_jax.errors import Mistake


def schedule(config: Config, updates_per_epoch: int) -> Callable[[Any], jax.Array]:
    """Learning rate after n updates: `learning_rate`, times `factor` at each boundary, after a linear warm-up.

    Args:
      config: its `optimizer.learning_rate` and `schedule`, whose boundaries are in epochs.
      updates_per_epoch: what turns epochs into updates (rounded).
    """
    boundaries: dict[int, float] = {}
    for epoch in config.schedule.boundaries_epochs:
        update = min(round(epoch * updates_per_epoch), 2**31 - 1)
        boundaries[update] = boundaries.get(update, 1.0) * config.schedule.factor  # two may fall on the same update
    piecewise: Any = optax.piecewise_constant_schedule(config.optimizer.learning_rate, boundaries)
    warmup = min(round(config.schedule.warmup_epochs * updates_per_epoch), 2**31 - 1)

    def rate(count: Any) -> jax.Array:
        count = jnp.asarray(count, jnp.float32)  # exact to 2^24 updates
        return piecewise(count) * (jnp.minimum(1.0, (count + 1) / warmup) if warmup else 1.0)

    return rate


def optimizer(config: Config, updates_per_epoch: int) -> optax.GradientTransformation:
    """Stochastic gradient descent as cuda-convnet and Caffe compute it, the rate inside the momentum:

        v <- momentum * v + rate * factor * (clip(g) + weight_decay * w),    w <- w - v

    so that after a drop of the rate the old velocity still runs out at the old scale (PyTorch multiplies the whole
    velocity by the new rate; at a constant rate the two are equal). `factor` is that of the first pattern of
    `optimizer.learning_rate_factors` found in the parameter's path ("mlpconv3/cccp6/kernel"), else 1. Weight decay
    acts on kernels alone. `clip` shortens a gradient of the whole network that is longer than `clip_norm`.
    """
    rules = learning_rate_factors(config)

    def factor(path: tuple[Any, ...], _) -> float:
        return next((f for pattern, f in rules if pattern.search("/".join(path))), 1.0)

    def scale_by_factor(updates, state, params=None):
        del params
        paths = ["/".join(p) for p in flatten_dict(updates)]
        for pattern, _ in rules:
            if not any(pattern.search(path) for path in paths):
                raise Mistake(f"optimizer.learning_rate_factors: no parameter matches {pattern.pattern!r}: {paths}")
        return jax.tree.map(lambda u, f: u * f, updates, path_aware_map(factor, updates)), state

    def kernels(params):
        return path_aware_map(lambda path, _: path[-1] == "kernel", params)

    o = config.optimizer
    return optax.chain(
        optax.clip_by_global_norm(o.clip_norm) if o.clip_norm else optax.identity(),
        optax.add_decayed_weights(o.weight_decay, kernels),
        optax.GradientTransformation(lambda params: optax.EmptyState(), scale_by_factor),
        optax.scale_by_schedule(schedule(config, updates_per_epoch)),
        optax.trace(o.momentum),
        optax.scale(-1.0),
    )
