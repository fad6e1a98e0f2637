"""The schedule against its closed form; the update against a loop in NumPy float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nin_jax import config as config_lib
from nin_jax import optim
from nin_jax.errors import Mistake


def settings(**changes):
    """A config whose `optimizer` and `schedule` are plain gradient descent of rate 0.1 but for `changes`."""
    c = config_lib.default()
    c.optimizer.update({"momentum": 0.0, "weight_decay": 0.0})
    for key, value in changes.items():
        (c.optimizer if key in c.optimizer else c.schedule)[key] = value
    return c


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


def reference(config, params, gradients, factor, updates_per_epoch: int = 2):
    """v <- momentum v + rate factor (clip(g) + decay w), w <- w - v, with the rate of the moment; in float64."""
    o, s = config.optimizer, config.schedule
    w = jax.tree.map(np.float64, params)
    v = jax.tree.map(np.zeros_like, w)
    for n, g in enumerate(gradients):
        rate = o.learning_rate * s.factor ** sum(n >= epoch * updates_per_epoch for epoch in s.boundaries_epochs)
        norm = np.sqrt(sum((x.astype(np.float64) ** 2).sum() for x in jax.tree.leaves(g)))
        short = o.clip_norm / norm if o.clip_norm and norm > o.clip_norm else 1.0

        def velocity(path, v, g, w, rate=rate, short=short):
            decay = o.weight_decay if path[-1].key == "kernel" else 0.0
            return o.momentum * v + rate * factor("/".join(k.key for k in path)) * (short * g + decay * w)

        v = jax.tree_util.tree_map_with_path(velocity, v, g, w)
        w = jax.tree.map(np.subtract, w, v)
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


def test_a_pattern_that_matches_no_parameter_is_a_mistake():
    params, gradients = trees(2)
    with pytest.raises(Mistake, match=r"no parameter matches 'cccp7': .*mlpconv3/cccp6/kernel"):
        run(settings(learning_rate_factors=("cccp6=0.1", "cccp7=2")), params, [gradients])
