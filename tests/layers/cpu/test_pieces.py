"""An evaluation a few images at a time gives what all at once do, and is done where it pays and nobody looks inside."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nin_jax.layers import Layer, MLPConv, avg_pool, gaussian, max_pool, portable
from nin_jax.layers.cpu.pieces import in_pieces


class Block(nn.Module):
    """An mlpconv of 64 and, where there are two layers, 4 maps, and its pool."""

    names: tuple[str, ...] = ("conv1", "cccp1")
    batch_norm: bool = False

    @nn.compact
    def __call__(self, x):
        bias = None if self.batch_norm else 0.1
        rows = [Layer(name, n, gaussian("he"), bias) for name, n in zip(self.names, (64, 4), strict=False)]
        return in_pieces(MLPConv(rows, 3, name="mlpconv1"), max_pool, x)


def batches_seen(block: nn.Module, variables: Any, images: int, channels: int, **call: Any) -> set[tuple[str, int]]:
    """The layers, and how many images each is traced with."""
    seen = set()

    def see(next_function, args, kwargs, context):
        if context.module.name in ("conv1", "cccp1"):
            seen.add((context.module.name, args[0].shape[0]))
        return next_function(*args, **kwargs)

    with nn.intercept_methods(see):
        image = jax.ShapeDtypeStruct((images, 56, 56, channels), jnp.float32)
        jax.eval_shape(lambda v, x: block.apply(v, x, **call), variables, image)
    return seen


@pytest.mark.parametrize("names", [("conv1", "cccp1"), ("conv1",)])
@pytest.mark.parametrize(("channels", "batch_norm"), [(3, False), (20, True)])
def test_a_few_images_at_a_time_give_what_all_at_once_do(channels, batch_norm, names):
    """Twelve pieces of 4 images, whose maps take 36 MiB. By the theorem the first layer sees all 48."""
    block = Block(names, batch_norm)
    x = np.random.default_rng(0).standard_normal((48, 56, 56, channels), np.float32)
    variables = block.init(jax.random.key(0), x[:1])
    f = jax.jit(block.apply)
    maps, pooled = f(variables, x)
    with portable(True):
        expected, expected_pooled = f(variables, x)
    assert maps.keys() == expected.keys() == set(names)
    for actual, truth in ((pooled, expected_pooled), *((maps[name], expected[name]) for name in names)):
        assert actual.shape == truth.shape
        np.testing.assert_allclose(actual, truth, atol=2e-5)
    seen = batches_seen(block, variables, 48, channels)
    assert ("conv1", 4) in seen if channels == 3 else ("conv1", 4) not in seen
    assert ("cccp1", 4) in seen or len(names) == 1


@pytest.mark.parametrize("pool", [max_pool, avg_pool])
def test_a_few_images_at_a_time_in_bfloat16_are_rounded_as_all_at_once_are(pool):
    """1x1 layers, which have one form; the largest of numbers that bfloat16 has needs no rounding, their mean one."""
    mlpconv = MLPConv([Layer("cccp1", 128, gaussian("he"), 0.1)], dtype=jnp.bfloat16, name="mlpconv1")

    class Rounded(nn.Module):
        @nn.compact
        def __call__(self, x):
            return in_pieces(mlpconv.clone(parent=self), pool, x)

    x = jnp.asarray(np.random.default_rng(0).standard_normal((48, 56, 56, 3)), jnp.bfloat16)
    variables = Rounded().init(jax.random.key(0), x[:1])
    maps, pooled = jax.jit(Rounded().apply)(variables, x)
    assert maps["cccp1"].dtype == pooled.dtype == jnp.bfloat16
    np.testing.assert_array_equal(pooled, jax.jit(pool)(maps["cccp1"]))


def test_small_or_uneven_batches_and_whoever_looks_inside_get_all_images_at_once():
    block = Block()
    variables = block.init(jax.random.key(0), jnp.zeros((1, 56, 56, 3)))
    assert ("cccp1", 4) in batches_seen(block, variables, 48, 3)
    assert batches_seen(block, variables, 4, 3) == {("conv1", 4), ("cccp1", 4)}
    assert batches_seen(block, variables, 47, 3) == {("conv1", 47), ("cccp1", 47)}
    inside = batches_seen(block, variables, 48, 3, capture_intermediates=True, mutable=["intermediates"])
    assert inside == {("conv1", 48), ("cccp1", 48)}
    with portable(True):
        assert batches_seen(block, variables, 48, 3) == {("conv1", 48), ("cccp1", 48)}
