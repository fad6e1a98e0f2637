"""The schedule against its closed form; the update against a loop in NumPy float64; the plateau rule in plain Python."""

from __future__ import annotations

import functools
import math
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from nin_jax import config as config_lib
from nin_jax.errors import UserError
from nin_jax.training import optim


def settings(**changes) -> config_lib.Config:
    """A config whose `optimizer` and `schedule` are plain gradient descent of rate 0.1 but for `changes`."""
    c = config_lib.default()
    c.dataset, c.model.name = "digits", "nin"
    c.optimizer.update({"momentum": 0.0, "weight_decay": 0.0})
    for key, value in changes.items():
        next(section for section in (c.optimizer, c.schedule, c) if key in section)[key] = value
    return config_lib.check(c)


def rates(config, updates_per_epoch: int, steps) -> np.ndarray:
    return np.array([optim.schedule(config, updates_per_epoch)(jnp.int32(n)) for n in steps])


@pytest.mark.parametrize("factor", [0.1, 0.5, 0.0])
def test_the_rate_drops_at_each_boundary(factor):
    """Epochs 2 and 3.5 of 10 updates: updates 0 to 19 at the full rate, 20 to 34 times factor, then times factor^2."""
    config = settings(learning_rate=0.3, boundaries_epochs=(2, 3.5), factor=factor)
    expected = [0.3] * 20 + [0.3 * factor] * 15 + [0.3 * factor**2] * 10
    np.testing.assert_allclose(rates(config, 10, range(45)), expected, rtol=1e-6)


def test_boundaries_may_stand_in_any_order_fall_together_or_never_come():
    config = settings(learning_rate=1.0, boundaries_epochs=(3, 1.1, 1.2, 1e300), factor=0.1)
    np.testing.assert_allclose(rates(config, 1, range(5)), [1, 0.01, 0.01, 0.001, 0.001], rtol=1e-6)


def test_the_rate_warms_up_linearly():
    """Half an epoch of 8 updates: a quarter of the rate at the first update, the whole at the fourth."""
    config = settings(learning_rate=0.2, boundaries_epochs=(1,), factor=0.5, warmup_epochs=0.5)
    expected = [0.05, 0.1, 0.15] + [0.2] * 5 + [0.1] * 4
    np.testing.assert_allclose(rates(config, 8, range(12)), expected, rtol=1e-6)


def test_the_rate_takes_a_plain_number_too():
    schedule = optim.schedule(settings(boundaries_epochs=(1,), warmup_epochs=0.5), 4)
    assert [float(schedule(n)) for n in range(5)] == pytest.approx([0.05, 0.1, 0.1, 0.1, 0.01])


SHAPES_OF_DECAY = {
    "none": lambda t, f: 1.0,
    "linear": lambda t, f: 1 - (1 - f) * t,
    "exponential": lambda t, f: f**t,
    "cosine": lambda t, f: f + (1 - f) * (1 + math.cos(math.pi * t)) / 2,
}


@pytest.mark.parametrize("final_factor", [0.01, 1.0, 4.0])
@pytest.mark.parametrize("decay", SHAPES_OF_DECAY)
def test_the_rate_falls_smoothly_and_stays(decay, final_factor):
    """To epoch 5 of 10 updates; times the drop at epoch 3 and the warm-up of one epoch."""
    changes = {"decay": decay, "final_factor": final_factor, "final_epochs": 5.0, "boundaries_epochs": (3,)}
    config = settings(learning_rate=0.4, warmup_epochs=1.0, **changes)
    expected = [
        0.4 * SHAPES_OF_DECAY[decay](min(n / 50, 1), final_factor) * min((n + 1) / 10, 1) * (0.1 if n >= 30 else 1)
        for n in range(70)
    ]
    np.testing.assert_allclose(rates(config, 10, range(70)), expected, rtol=2e-6)


def test_the_rate_falls_to_the_last_epoch_where_no_other_is_given():
    config = settings(learning_rate=1.0, decay="linear", final_factor=0.0, epochs=4)
    np.testing.assert_allclose(rates(config, 2, range(10)), [*(np.arange(8, 0, -1) / 8), 0, 0], atol=1e-7)


SHAPES = {
    "mlpconv1": {"conv1": {"kernel": (3, 3, 2, 4), "bias": (4,)}, "cccp1": {"kernel": (1, 1, 4, 5), "bias": (5,)}},
    "mlpconv3": {"cccp6": {"kernel": (1, 1, 5, 3), "bias": (3,)}},
}


def trees(n: int, size: float = 1.0):
    """n trees of random numbers: parameters, then gradients."""
    draw = np.random.default_rng(0)
    leaves, form = jax.tree.flatten(SHAPES, is_leaf=lambda x: isinstance(x, tuple))
    return [
        jax.tree.unflatten(form, [np.float32(size) * draw.standard_normal(s, np.float32) for s in leaves])
        for _ in range(n)
    ]


def run(config, params, gradients, updates_per_epoch: int = 2):
    optimizer = optim.optimizer(config, updates_per_epoch)
    params = jax.tree.map(jnp.asarray, params)
    state = optimizer.init(params)
    for g in gradients:
        updates, state = optimizer.update(jax.tree.map(jnp.asarray, g), state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return params


def reference(config, params, gradients, factor, updates_per_epoch: int = 2, cap=lambda path: math.inf):
    """v <- momentum v + rate factor (clip(g) + decay w), w <- cap(w - v), all as they are at the moment; in float64."""
    o, s = config.optimizer, config.schedule
    w = jax.tree.map(np.float64, params)
    v = jax.tree.map(np.zeros_like, w)
    for n, g in enumerate(gradients):
        rate = o.learning_rate * s.factor ** sum(n >= epoch * updates_per_epoch for epoch in s.boundaries_epochs)
        if s.decay != "none":
            rate *= SHAPES_OF_DECAY[s.decay](min(n / (s.final_epochs * updates_per_epoch), 1), s.final_factor)
        part = min(n / (o.momentum_epochs * updates_per_epoch), 1) if o.momentum_epochs else 0.0
        momentum = o.momentum + part * (o.momentum_final - o.momentum)
        norm = np.sqrt(sum((x.astype(np.float64) ** 2).sum() for x in jax.tree.leaves(g)))
        short = o.clip_norm / norm if o.clip_norm and norm > o.clip_norm else 1.0

        def velocity(path, v, g, w, rate=rate, short=short, momentum=momentum):
            decay = o.weight_decay if path[-1].key == "kernel" else 0.0
            return momentum * v + rate * factor("/".join(k.key for k in path)) * (short * g + decay * w)

        v = jax.tree_util.tree_map_with_path(velocity, v, g, w)
        w = jax.tree.map(np.subtract, w, v)
        w = jax.tree_util.tree_map_with_path(lambda path, w: capped(w, cap("/".join(k.key for k in path))), w)
    return w


def capped(w, longest):
    """Each filter w[..., k] by itself."""
    w = w.copy()
    for k in range(w.shape[-1]):
        norm = math.sqrt(float((w[..., k].astype(np.float64) ** 2).sum()))
        if norm > longest:
            w[..., k] *= longest / norm
    return w


def release(path: str) -> float:
    """experiments/cifar10.py's: bias twice, cccp6's kernel a tenth, its bias a fifth."""
    kernel, bias = (0.1, 0.2) if "cccp6" in path else (1.0, 2.0)
    return bias if path.endswith("bias") else kernel


@pytest.mark.parametrize(
    ("changes", "factor"),
    [
        ({}, lambda path: 1.0),
        ({"weight_decay": 0.3}, lambda path: 1.0),
        ({"momentum": 0.9, "boundaries_epochs": (1, 2), "factor": 0.1}, lambda path: 1.0),
        ({"clip_norm": 2.0, "weight_decay": 0.1, "momentum": 0.5}, lambda path: 1.0),
        ({"clip_norm": 1e6}, lambda path: 1.0),
        (
            {
                "learning_rate_factors": ("cccp6/kernel=0.1", "cccp6/bias=0.2", "bias=2"),
                "momentum": 0.9,
                "weight_decay": 0.1,
                "boundaries_epochs": (1.5,),
            },
            release,
        ),
    ],
    ids=["plain", "decay", "momentum", "clip", "long-clip", "release"],
)
def test_the_update_equals_a_loop(changes, factor):
    """Six updates over three epochs. With momentum the old velocity runs out at the old rate after a drop."""
    config = settings(**changes)
    params, *gradients = trees(7)
    result = run(config, params, gradients)
    expected = reference(config, params, gradients, factor)
    for mine, theirs in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-6 * np.abs(theirs).max())


def test_twenty_updates_with_everything_that_changes_in_a_run():
    """Momentum from 0.5 to 0.65 within 7 updates, rate to a tenth within 15, L2, filters of up to 0.8, 2 and 0.3."""
    config = settings(
        momentum=0.5,
        momentum_final=0.65,
        momentum_epochs=3.5,
        weight_decay=0.1,
        decay="linear",
        final_factor=0.1,
        final_epochs=7.5,
        learning_rate_factors=("cccp6/kernel=0.1", "cccp6/bias=0.2", "bias=2"),
        max_norms=("conv1/kernel=0.8", "kernel=2", "cccp6/bias=0.3"),
    )
    caps = {"mlpconv1/conv1/kernel": 0.8, "mlpconv1/cccp1/kernel": 2, "mlpconv3/cccp6/kernel": 2}
    caps["mlpconv3/cccp6/bias"] = 0.3
    params, *gradients = trees(21)
    result = run(config, params, gradients)
    expected = reference(config, params, gradients, release, cap=lambda path: caps.get(path, math.inf))
    for mine, theirs in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-6 * np.abs(theirs).max())


def test_a_long_filter_is_shortened_and_a_short_one_not_touched():
    """w - 0.1 g, then filter by filter. Those of 0.3 and below and of zeros are, to the last bit, as without a cap."""
    draw = np.random.default_rng(1)
    w = draw.standard_normal((3, 3, 4, 6)).astype(np.float32)
    g = draw.standard_normal(w.shape).astype(np.float32)
    norms = np.array([0.1, 0.3, 5.0, 0.7, 0.0, 2.0], np.float32)
    w *= norms / np.sqrt((w**2).sum((0, 1, 2)))
    g[..., 4] = 0
    g *= 0.5 / np.maximum(np.sqrt((g**2).sum((0, 1, 2))), 1e-9)  # no filter is moved by more than 0.05
    params, gradients = ({"a": {"kernel": x, "bias": x[0, 0, 0]}} for x in (w, g))
    free = run(settings(), params, [gradients])["a"]
    result = run(settings(max_norms=("kernel=0.5",)), params, [gradients])["a"]
    short = norms <= 0.3
    np.testing.assert_array_equal(result["kernel"][..., short], free["kernel"][..., short])
    np.testing.assert_array_equal(result["kernel"][..., 4], 0)
    np.testing.assert_array_equal(result["bias"], free["bias"])
    expected = capped(w.astype(np.float64) - np.float64(np.float32(0.1)) * g, 0.5)
    np.testing.assert_allclose(result["kernel"], expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.sqrt((result["kernel"] ** 2).sum((0, 1, 2)))[~short], 0.5, rtol=1e-5)


def machine(errors, patience: int, drops: int, factor: float):
    """The paper's manual rule: the factor of the rate in each epoch, given the number of mistakes in each."""
    best, waited, dropped, factors = math.inf, 0, 0, [1.0]
    for error in errors:
        best, waited = (error, 0) if error < best else (best, waited + 1)
        if waited == patience:
            waited, dropped = 0, min(dropped + 1, drops)
        factors.append(factor**dropped)
    return factors[:-1]


@functools.cache
def applied(updates_per_epoch: int, batch_size: int, **changes):
    """From the errors of the batches to the factor of the rate that each update had; compiled once."""
    config = settings(learning_rate=1.0, batch_size=batch_size, **changes)
    optimizer: Any = optim.optimizer(config, updates_per_epoch)
    one = {"a": {"kernel": jnp.ones(1)}}

    def update(state, error):
        updates, state = optimizer.update(one, state, one, value=error)
        return state, (-updates["a"]["kernel"][0], optim.plateau_scale(state))

    return jax.jit(lambda errors: jax.lax.scan(update, optimizer.init(one), errors)[1])


@pytest.mark.parametrize(("patience", "drops", "factor"), [(1, 2, 0.1), (2, 1, 0.5), (3, 3, 0.1)])
@given(st.lists(st.integers(0, 3), min_size=60, max_size=60))
def test_the_rate_falls_when_training_stops_improving(patience, drops, factor, wrong):
    """Twenty epochs of three batches of 3; ties are no progress."""
    wrong = np.reshape(wrong, (20, 3))
    changes = {"plateau_epochs": patience, "plateau_drops": drops, "factor": factor}
    scales, said = applied(3, 3, **changes)(jnp.asarray(wrong.ravel() / 3, jnp.float32))
    np.testing.assert_allclose(scales, np.repeat(machine(wrong.sum(1), patience, drops, factor), 3), rtol=1e-6)
    np.testing.assert_array_equal(said, scales)


def test_one_mistake_less_is_an_improvement_and_the_same_in_another_order_is_none():
    """Epochs of 500 batches of 100, whose hundredths no float32 holds. Each epoch without progress is a drop."""
    draw = np.random.default_rng(0)
    wrong = draw.integers(1, 101, 500)
    fewer = np.concatenate([wrong[:-1], wrong[-1:] - 1])
    epochs = [draw.permutation(wrong) for _ in range(3)] + [draw.permutation(fewer) for _ in range(3)]
    scales, _ = applied(500, 100, plateau_epochs=1, plateau_drops=9, factor=0.5)(jnp.float32(np.ravel(epochs) / 100))
    np.testing.assert_array_equal(scales, np.repeat([1, 1, 0.5, 0.25, 0.25, 0.125], 500))


def test_the_plateau_rule_lets_the_old_velocity_run_out_at_the_old_rate():
    """By hand: momentum 0.5, gradient 1, one update an epoch, no progress in the second: v = 1, 1.5, 0.75 + 0.1."""
    config = settings(learning_rate=1.0, momentum=0.5, plateau_epochs=1)
    optimizer: Any = optim.optimizer(config, 1)
    one = {"a": {"kernel": jnp.ones(1)}}
    state, steps = optimizer.init(one), []
    for _ in range(3):
        updates, state = optimizer.update(one, state, one, value=jnp.float32(0.5))
        steps.append(float(updates["a"]["kernel"][0]))
    assert steps == pytest.approx([-1, -1.5, -0.85])


def test_without_the_plateau_rule_its_scale_is_one():
    params, _ = trees(2)
    state = optim.optimizer(settings(momentum=0.9), 2).init(params)
    assert optim.plateau_scale(state) == 1


def test_a_drop_of_the_rate_does_not_shorten_the_old_velocity():
    """By hand: rate 1 then 0.1, momentum 0.5, gradient 1: v = 1, 0.5 + 0.1. PyTorch would step 0.1 * 1.5 = 0.15."""
    config = settings(learning_rate=1.0, momentum=0.5, boundaries_epochs=(1,), factor=0.1)
    one = {"a": {"kernel": np.ones((1,), np.float32)}}
    result = run(config, {"a": {"kernel": np.zeros((1,), np.float32)}}, [one, one], updates_per_epoch=1)
    np.testing.assert_allclose(result["a"]["kernel"], [-(1 + 0.6)], rtol=1e-6)


def test_the_first_pattern_that_matches_counts():
    """Patterns are regular expressions searched in the whole path; what none matches has factor 1."""
    params, gradients = trees(2)
    config = settings(learning_rate_factors=("^mlpconv1/.*kernel=3", "conv1=5", "kernel$=7"))
    result = run(config, params, [gradients])
    expected = reference(
        config,
        params,
        [gradients],
        lambda path: {"mlpconv1/conv1/kernel": 3, "mlpconv1/cccp1/kernel": 3, "mlpconv3/cccp6/kernel": 7}.get(
            path, 5 if path.startswith("mlpconv1") else 1
        ),
    )
    for mine, theirs in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-6 * np.abs(theirs).max())


@pytest.mark.parametrize("key", ["learning_rate_factors", "max_norms"])
def test_a_pattern_that_matches_no_parameter_is_a_mistake(key):
    params, gradients = trees(2)
    with pytest.raises(UserError, match=rf"^optimizer.{key}: no parameter matches 'cccp7': .*mlpconv3/cccp6/kernel"):
        run(settings(**{key: ("cccp6=0.1", "cccp7=2")}), params, [gradients])
