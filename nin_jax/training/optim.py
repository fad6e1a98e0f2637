"""The optax optimiser of a config: momentum, weight decay, rates and max-norms by parameter path, the schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, path_aware_map

from nin_jax.config import Config
from nin_jax.errors import UserError
from nin_jax.schema import Rule


def schedule(config: Config, updates_per_epoch: int, scale: float = 1.0) -> Callable[[Any], jax.Array]:
    """Learning rate after n updates, without the factor of `plateau`.

        rate(n) = scale * learning_rate * factor^(boundaries passed) * decay(n / N) * min(1, (n + 1) / warm-up)

    `decay(t)` goes from 1 at t = 0 to f = `final_factor` at t = 1 and stays there: linear 1 - (1 - f) t,
    exponential f^t, cosine f + (1 - f) (1 + cos(pi t)) / 2; N is `final_epochs`, or `epochs` where that is 0.

    Args:
      config: its `optimizer.learning_rate` and `schedule`, whose lengths are in epochs.
      updates_per_epoch: turns epochs into updates (rounded).
      scale: the factor of rollbacks (`rollback.factor`).
    """
    s = config.schedule
    boundaries: dict[int, float] = {}
    for epoch in s.boundaries_epochs:
        update = _updates(epoch, updates_per_epoch)
        boundaries[update] = boundaries.get(update, 1.0) * s.factor  # two may fall on the same update
    piecewise: Any = optax.piecewise_constant_schedule(scale * config.optimizer.learning_rate, boundaries)
    warmup = _updates(s.warmup_epochs, updates_per_epoch)
    end = max(1, _updates(s.final_epochs or config.epochs, updates_per_epoch))
    shapes: dict[str, Any] = {
        "none": lambda: optax.constant_schedule(1.0),
        "linear": lambda: optax.linear_schedule(1.0, s.final_factor, end),
        "exponential": lambda: optax.exponential_decay(1.0, end, s.final_factor, end_value=s.final_factor),
        "cosine": lambda: optax.cosine_decay_schedule(1.0, end, s.final_factor),
    }
    decay = shapes[s.decay]()

    def rate(count: Any) -> jax.Array:
        count = jnp.asarray(count, jnp.float32)  # exact to 2^24 updates
        return piecewise(count) * decay(count) * (jnp.minimum(1.0, (count + 1) / warmup) if warmup else 1.0)

    return rate


def _updates(epochs: float, updates_per_epoch: int) -> int:
    return min(round(epochs * updates_per_epoch), 2**31 - 1)


class Plateau(NamedTuple):
    """State of the plateau rule: `scale` float32, factor of the rate in the last update; the others int32."""

    scale: jax.Array
    drops: jax.Array  # so far
    best: jax.Array  # fewest mistakes of an epoch before this
    waited: jax.Array  # epochs since then
    mistakes: jax.Array  # in this epoch so far
    updates: jax.Array


def plateau(config: Config, updates_per_epoch: int) -> optax.GradientTransformationExtraArgs:
    """The paper's rule (section 4.1): "until the accuracy on the training set stops improving", then a lower rate.

    After `schedule.plateau_epochs` epochs in a row without fewer mistakes than in the best epoch so far, the rate drops
    by `schedule.factor`, and the count starts again. After `plateau_drops` drops nothing more happens, and training
    continues to `epochs`.

    `update` takes `value`, the training error of its batch as a fraction. Mistakes are counted as whole numbers, so
    that neither rounding nor the order of the batches looks like progress.
    """
    s = config.schedule

    def init(params: Any) -> Plateau:
        del params
        zero = jnp.int32(0)
        return Plateau(jnp.float32(1), zero, jnp.int32(2**31 - 1), zero, zero, zero)

    def judge(p: Plateau) -> Plateau:
        """Between two epochs."""
        zero = jnp.int32(0)
        waited = jnp.where(p.mistakes < p.best, 0, p.waited + 1)
        enough = waited == s.plateau_epochs
        drop = enough & (p.drops < s.plateau_drops)
        scale, drops = jnp.where(drop, p.scale * s.factor, p.scale), jnp.where(drop, p.drops + 1, p.drops)
        return Plateau(scale, drops, jnp.minimum(p.best, p.mistakes), jnp.where(enough, 0, waited), zero, zero)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Plateau]:
        del params
        p = jax.lax.cond(state.updates == updates_per_epoch, judge, lambda p: p, state)
        mistakes = jnp.round(extra["value"] * config.batch_size).astype(jnp.int32)
        p = p._replace(mistakes=p.mistakes + mistakes, updates=p.updates + 1)
        return jax.tree.map(lambda u: u * p.scale, updates), p

    return optax.GradientTransformationExtraArgs(init, update)


def plateau_scale(opt_state: optax.OptState) -> Any:
    """The factor of the plateau rule in the last update; 1 if the rule is off."""
    found = optax.tree_utils.tree_get(opt_state, "Plateau")
    return found.scale if found else 1.0


def optimizer(config: Config, updates_per_epoch: int, scale: float = 1.0) -> optax.GradientTransformationExtraArgs:
    """Stochastic gradient descent as in cuda-convnet and Caffe, with the learning rate inside the momentum:

        v <- momentum * v + rate * factor * (clip(g) + weight_decay * w),    w <- cap(w - v)

    so that after a drop of the rate the old velocity decays at its old scale (PyTorch multiplies the whole velocity by
    the new rate; at a constant rate the two are equal). `factor` is that of the first pattern of
    `optimizer.learning_rate_factors` found in the parameter's path ("mlpconv3/cccp6/kernel"), else 1. Weight decay
    acts on kernels alone. `clip` rescales the gradient of the whole network to the norm `clip_norm` if it is larger.

    `momentum` goes linearly from `momentum` at the first update to `momentum_final` after `momentum_epochs`.

    `cap` rescales each filter, the weights `w[..., k]` of one output, to the norm of the first pattern of
    `optimizer.max_norms` found in the path, if it is larger (pylearn2's max_kernel_norm and max_col_norm). Smaller ones
    stay as they are, to the last bit.

    With `schedule.plateau_epochs` the rate is also that of `plateau`, and `update` takes its `value`.

    Raises `UserError`, at the first update, if a pattern matches no parameter.
    """
    o, s = config.optimizer, config.schedule
    chain = [
        optax.clip_by_global_norm(o.clip_norm) if o.clip_norm else optax.identity(),
        optax.add_decayed_weights(o.weight_decay, _kernels),
        optax.stateless(lambda updates, _: _scale_by_factor(updates, o.learning_rate_factors)),
        optax.scale_by_schedule(schedule(config, updates_per_epoch, scale)),
    ]
    if s.plateau_epochs:
        chain.append(plateau(config, updates_per_epoch))
    if o.momentum_epochs:
        end = max(1, _updates(o.momentum_epochs, updates_per_epoch))
        chain.append(optax.inject_hyperparams(optax.trace)(optax.linear_schedule(o.momentum, o.momentum_final, end)))
    else:
        chain.append(optax.trace(o.momentum))
    chain.append(optax.scale(-1.0))
    if o.max_norms:
        chain.append(optax.stateless(lambda updates, params: _cap(updates, params, o.max_norms)))
    return optax.chain(*chain)


def _kernels(params: Any) -> Any:
    return path_aware_map(lambda path, _: path[-1] == "kernel", params)


def _scale_by_factor(updates: Any, rules: Sequence[Rule]) -> Any:
    factors = _by_path(updates, rules, 1.0, "learning_rate_factors")
    return jax.tree.map(lambda u, f: u * f, updates, factors)


def _cap(updates: Any, params: Any, rules: Sequence[Rule]) -> Any:
    """Updates after which no filter exceeds its norm."""

    def one(u: jax.Array, w: jax.Array, longest: float) -> jax.Array:
        new = w + u
        norm = jnp.sqrt(jnp.sum(new**2, axis=tuple(range(new.ndim - 1)), keepdims=True))
        return jnp.where(norm > longest, new * (longest / jnp.maximum(norm, longest)) - w, u)

    norms = _by_path(updates, rules, math.inf, "max_norms")
    return jax.tree.map(lambda u, w, n: u if n == math.inf else one(u, w, n), updates, params, norms)


def _by_path(tree: Any, rules: Sequence[Rule], default: float, key: str) -> Any:
    """A tree with the number of the first pattern that is found in each path."""
    paths = ["/".join(p) for p in flatten_dict(tree)]
    for rule in rules:
        if not any(rule.pattern.search(path) for path in paths):
            raise UserError(f"optimizer.{key}: no parameter matches {rule.pattern.pattern!r}: {paths}")

    def number(path: tuple[Any, ...], _) -> float:
        return next((rule.number for rule in rules if rule.pattern.search("/".join(path))), default)

    return path_aware_map(number, tree)
