"""Equation 2 against explicit loops in NumPy float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nin_jax.layers import Layer, MLPConv, gaussian


def rng(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def sliding_mlp(x: np.ndarray, weights: list[tuple[np.ndarray, np.ndarray]], relu_last: bool) -> list[np.ndarray]:
    """Equation 2, position by position, in float64: a perceptron applied to the patch around each pixel."""
    size, half = weights[0][0].shape[0], weights[0][0].shape[0] // 2
    padded = np.pad(x.astype(np.float64), ((0, 0), (half, half), (half, half), (0, 0)))
    maps = [np.zeros((*x.shape[:3], len(bias))) for _, bias in weights]
    for b, i, j in np.ndindex(*x.shape[:3]):
        f = padded[b, i : i + size, j : j + size].ravel()
        for n, (kernel, bias) in enumerate(weights):
            f = kernel.astype(np.float64).reshape(-1, len(bias)).T @ f + bias
            if relu_last or n + 1 < len(weights):
                f = np.maximum(f, 0)
            maps[n][b, i, j] = f
    return maps


@settings(max_examples=12)
@given(
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    channels=st.integers(1, 4),
    size=st.sampled_from([1, 3, 5]),
    widths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    relu_last=st.booleans(),
    seed=st.integers(0, 9),
)
def test_mlpconv_is_a_perceptron_slid_over_the_patches(height, width, channels, size, widths, relu_last, seed):
    """Every layer's map, for any size, depth and kernel, to 1e-6 of float64."""
    names = [f"layer{n}" for n in range(len(widths))]
    x = rng(2, height, width, channels, seed=seed)
    ins = [size * size * channels, *widths]
    weights = [
        (rng(side, side, fan // side**2, out, seed=seed + 1) / np.float32(np.sqrt(fan)), rng(out, seed=seed + 2))
        for side, fan, out in zip([size, *[1] * len(widths)], ins, widths, strict=False)
    ]
    params = {name: {"kernel": k, "bias": b} for name, (k, b) in zip(names, weights, strict=True)}
    rows = [Layer(name, width, gaussian(0.05)) for name, width in zip(names, widths, strict=True)]
    rows[-1] = rows[-1]._replace(relu=relu_last)
    layer = MLPConv(rows, size)
    maps = jax.jit(layer.apply)({"params": params}, x)
    expected = sliding_mlp(x, weights, relu_last)
    assert list(maps) == names
    for name, reference in zip(names, expected, strict=True):
        assert maps[name].shape == reference.shape
        np.testing.assert_allclose(maps[name], reference, rtol=1e-6, atol=1e-6 * max(1, np.abs(reference).max()))


def normalised(
    x: np.ndarray, axis_name: str | None = None, devices: int = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Output of a layer with batch normalisation and no ReLU in training on so many devices, and the running statistics."""
    layer = MLPConv([Layer("conv1", 3, gaussian("he"), bias=None, relu=False)], axis_name=axis_name)
    variables = layer.init(jax.random.key(0), jnp.asarray(x[:1]))
    assert set(variables["params"]) == {"conv1", "conv1_norm"}
    assert set(variables["params"]["conv1"]) == {"kernel"}

    def train(x: jax.Array):
        maps, state = layer.apply(variables, x, train=True, mutable=["batch_stats"])
        return maps["conv1"], state["batch_stats"]["conv1_norm"]

    shares = jnp.asarray(x.reshape(devices, -1, *x.shape[1:]))
    maps, stats = jax.vmap(train, axis_name="replicas")(shares)
    return np.concatenate(maps), np.asarray(stats["mean"]), np.asarray(stats["var"])


def test_batch_normalisation_stands_in_place_of_the_bias():
    """Each map has mean 0 and variance 1 over the batch; a tenth of the batch's statistics goes into the running ones."""
    x = rng(8, 4, 4, 5) + 3
    y, mean, variance = normalised(x)
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(y.var((0, 1, 2)), 1, rtol=1e-3)
    assert np.abs(mean).max() > 0.05
    assert (variance != 0.9).all()


def test_replicas_of_a_mapped_axis_share_the_statistics_and_without_its_name_they_do_not():
    x = rng(8, 4, 4, 5) + np.arange(8, dtype=np.float32).reshape(-1, 1, 1, 1)
    whole, shared, apart = normalised(x), normalised(x, "replicas", 4), normalised(x, None, 4)
    np.testing.assert_allclose(shared[0], whole[0], atol=1e-4)
    for a, b in zip(shared[1:], whole[1:], strict=True):
        np.testing.assert_allclose(a, np.broadcast_to(b, a.shape), rtol=1e-4, atol=1e-5)
    assert np.abs(apart[0] - whole[0]).max() > 0.5


@pytest.mark.parametrize("train", [True, False])
def test_unmapped_a_layer_needs_no_axis(train):
    layer = MLPConv([Layer("conv1", 3, gaussian("he"), bias=None)], 3)
    x = jnp.asarray(rng(2, 5, 5, 2))
    variables = layer.init(jax.random.key(0), x)
    maps, _ = layer.apply(variables, x, train=train, mutable=["batch_stats"])
    assert maps["conv1"].shape == (2, 5, 5, 3)
