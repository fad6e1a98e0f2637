"""Whether a network still learns, judged by the metrics of its updates."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from nin_jax.console import say
from nin_jax.errors import Diverged
from nin_jax.runs.progress import Progress

# Updates in a row with a constant logit after which a class counts as dead. A ReLU on the class maps that is 0 for every
# image passes no gradient, so the class never recovers; by chance, a batch or two may look like this.
DEAD_AFTER = 50
# Most nats between the loss of a dead network and ln K, that of equal logits; smoothed labels and rounding change less.
DEAD_LOSS = 0.05


def absorb(progress: Progress, step: int, count: int, metrics: Mapping[str, np.ndarray]) -> Progress:
    """Adds the metrics of `count` updates, in order. Raises `Diverged` at the first at which the network is lost.

    Args:
      progress: up to the update before.
      step: finished updates after these.
      count: how many.
      metrics: "loss", "error" `[count or more]` and "constant" `[count or more, K]` of `step.train_steps`.
    """
    constant_for = np.array(progress.constant_for or [0] * metrics["constant"].shape[1])
    loss, error = progress.loss, progress.error
    for i in range(count):
        constant_for = (constant_for + 1) * metrics["constant"][i].astype(int)
        _check(step - count + i + 1, float(metrics["loss"][i]), constant_for)
        loss += float(metrics["loss"][i])
        error += float(metrics["error"][i])
    return dataclasses.replace(
        progress, loss=loss, error=error, updates=progress.updates + count, constant_for=tuple(constant_for.tolist())
    )


def _check(update: int, loss: float, constant_for: np.ndarray) -> None:
    if not math.isfinite(loss):
        raise Diverged(
            f"the loss is {loss} at update {update}; a lower optimizer.learning_rate, optimizer.clip_norm=1 or "
            "schedule.warmup_epochs=1 helps",
            update,
        )
    chance = math.log(len(constant_for))
    if constant_for.min() >= DEAD_AFTER and abs(loss - chance) < DEAD_LOSS:
        raise Diverged(
            f"the network is dead at update {update}: for {DEAD_AFTER} updates every image has had the same logits "
            f"(loss {loss:.4f}, ln {len(constant_for)} = {chance:.4f}), so all class maps are 0 and pass no gradient; "
            "what helps: model.class_map_bias=1.0, model.deviations=('he',), another seed, or model.relu_on_class_maps=False",
            update,
        )


def warn(progress: Progress) -> None:
    """Names the dead classes, if there are any."""
    dead = np.flatnonzero(np.array(progress.constant_for) >= DEAD_AFTER).tolist()
    if dead:
        classes = len(progress.constant_for)
        say(f"warning: {len(dead)} of {classes} classes have had a constant logit for {DEAD_AFTER} updates: {dead}")
