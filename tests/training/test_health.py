"""What the metrics of updates say of a network, with arrays and nothing else."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nin_jax.errors import Diverged
from nin_jax.runs.progress import Progress
from nin_jax.training import health

CHANCE = math.log(4)


def metrics(losses, constant=(0, 0, 0, 0)):
    """Of as many updates as losses, of four classes; the error is a quarter of the loss."""
    loss = np.array(losses, np.float32)
    return {"loss": loss, "error": loss / 4, "constant": np.tile(np.float32(constant), (len(loss), 1))}


def test_sums_do_not_depend_on_how_the_updates_are_cut():
    """Seven at once, and three and four; what the buffer holds beyond `count` is not looked at."""
    losses = np.random.default_rng(0).uniform(0.1, 2, 7)
    whole = health.absorb(Progress(), 7, 7, metrics(losses))
    part = health.absorb(Progress(), 3, 3, metrics([*losses[:3], math.nan]))
    assert health.absorb(part, 7, 4, metrics([*losses[3:], math.inf])) == whole
    assert whole.updates == 7
    assert whole.means() == pytest.approx({"loss": losses.mean(), "error_pct": 25 * losses.mean()})


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_named_with_its_update(bad):
    with pytest.raises(Diverged, match=rf"loss is {bad} at update 22; .*learning_rate") as raised:
        health.absorb(Progress(), 24, 4, metrics([1, bad, 1, 1]))
    assert raised.value.update == 22


def test_a_network_is_dead_after_fifty_updates_of_constant_logits():
    """However they are cut; and not when a class lives, nor while the loss is another than that of equal logits."""
    progress = health.absorb(Progress(), 49, 49, metrics([CHANCE] * 49, (1, 1, 1, 1)))
    assert progress.constant_for == (49, 49, 49, 49)
    with pytest.raises(Diverged, match=r"dead at update 50: .*\(loss 1.3863, ln 4 = 1.3863\)"):
        health.absorb(progress, 51, 2, metrics([CHANCE] * 2, (1, 1, 1, 1)))
    health.absorb(progress, 51, 2, metrics([CHANCE] * 2, (1, 1, 0, 1)))
    health.absorb(progress, 51, 2, metrics([CHANCE + 0.06] * 2, (1, 1, 1, 1)))


def test_dead_classes_are_named_and_a_class_may_come_back(capsys):
    progress = health.absorb(Progress(), 50, 50, metrics([1] * 50, (0, 1, 0, 1)))
    health.warn(progress)
    assert "2 of 4 classes have had a constant logit for 50 updates: [1, 3]" in capsys.readouterr().err
    progress = health.absorb(progress, 51, 1, metrics([1], (0, 0, 0, 1)))
    assert progress.constant_for == (0, 0, 0, 51)
    health.warn(health.absorb(progress, 52, 1, metrics([1])))
    assert not capsys.readouterr().err
