"""The maxout network: pylearn2's sizes, PyTorch's numbers, and what its experiments' optimiser does to it."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from nin_jax import config as config_lib
from nin_jax.layers import Dropout
from nin_jax.models.maxout import Model
from nin_jax.training import optim
from nin_jax.training.build import Run
from nin_jax.training.describe import describe
from nin_jax.training.state import init_variables
from tests.models.zoo import MAXOUT

torch = pytest.importorskip("torch", reason="PyTorch is the independent formula of the network")
F = torch.nn.functional

SMALL = {name: value for name, value in MAXOUT.items() if name != "limit"}
ARGUMENTS = ["cifar10", "cifar10_augmented", "cifar100", "svhn", "mnist"]


def experiment(arg: str):
    return config_lib.check(config_lib.experiment("maxout", arg))


@pytest.mark.parametrize(
    ("arg", "sides", "parameters"),
    [
        ("cifar10", [(33, 16), (15, 7), (9, 5)], 16_247_830),
        ("svhn", [(36, 18), (20, 10), (12, 6)], 10_461_050),
        ("mnist", [(21, 10), (9, 4), (6, 3)], 418_714),
    ],
)
def test_sizes_of_pylearn2s_networks(arg, sides, parameters, capsys):
    """Convolution and pool of each layer; parameters and multiply-adds, all pieces counted, by hand."""
    run = Run(experiment(arg))
    m, (height, _, channels) = run.model, run.info.image_shape
    shapes = jax.eval_shape(
        lambda: run.model.init_with_output(jax.random.key(0), jnp.zeros((1, height, height, channels)), train=False)
    )
    maps = shapes[0][1]
    assert [(maps[f"h{i}"].shape[1:3], maps[f"pool{i}"].shape[1:3]) for i in range(3)] == [
        ((a, a), (b, b)) for a, b in sides
    ]
    assert "class_maps" not in maps
    count = macs = 0
    for width, pieces, size, (side, pooled) in zip(m.widths, m.pieces, m.kernels, sides, strict=True):
        weights = size * size * channels * width * pieces
        count, macs, channels, inputs = (
            count + weights + width * pieces,
            macs + side**2 * weights,
            width,
            pooled**2 * width,
        )
    for units in [m.dense_width * m.dense_pieces, 10] if m.dense_width else [10]:
        count, macs, inputs = count + (inputs + 1) * units, macs + inputs * units, units // m.dense_pieces
    totals = describe(run)
    assert totals["parameters"] == count == parameters
    assert totals["multiply_adds_per_image"] == macs


def forward(params, image: np.ndarray, masks):
    """The network as PyTorch writes it; `masks` are the factors on the input of each layer."""
    x = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
    maps = {}
    for i, (width, pieces, pad, pool) in enumerate(
        zip(SMALL["widths"], SMALL["pieces"], SMALL["pads"], SMALL["pools"], strict=True)
    ):
        kernel, bias = (torch.from_numpy(np.array(params[f"h{i}"][k])) for k in ("kernel", "bias"))
        x = x * torch.from_numpy(masks[i].transpose(0, 3, 1, 2).copy())
        x = F.conv2d(x, kernel.permute(3, 2, 0, 1), bias, padding=pad)
        x = maps[f"h{i}"] = x.unflatten(1, (pieces, width)).amax(1)
        x = maps[f"pool{i}"] = F.max_pool2d(x, pool, 2, ceil_mode=True)
    x = x.permute(0, 2, 3, 1).flatten(1)
    for name, mask in zip(("h3", "y"), masks[3:], strict=True):
        kernel, bias = (torch.from_numpy(np.array(params[name][k])) for k in ("kernel", "bias"))
        x = (x * torch.from_numpy(mask)) @ kernel + bias
        if name == "h3":
            x = x.unflatten(1, (SMALL["dense_pieces"], SMALL["dense_width"])).amax(1)
    return x, maps


@pytest.mark.parametrize("train", [False, True])
def test_the_network_and_all_its_maps_equal_pytorch(train):
    """With dropout before each layer: of the picture, never rescaled, and of all else, doubled."""
    rates = [(0.2, "unscaled"), *[(0.5, "inverted")] * 4]

    class Masks(nn.Module):
        """What the network's dropout layers do to ones."""

        @nn.compact
        def __call__(self, shapes):
            return [
                Dropout(*rate, name=f"dropout{i}")(jnp.ones(s), train=train)
                for i, (rate, s) in enumerate(zip(rates, shapes, strict=True))
            ]

    image = np.random.default_rng(0).standard_normal((3, 16, 14, 3)).astype(np.float32)
    model = Model(10, **SMALL)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False)["params"])
    draw = np.random.default_rng(1)
    params = jax.tree.map(lambda p: np.float32(0.1) * draw.standard_normal(p.shape, np.float32), shapes)
    rngs = {"dropout": jax.random.key(5)} if train else {}
    logits, maps = jax.jit(lambda p, x: model.apply({"params": p}, x, train=train, rngs=rngs))(params, image)
    flat = (3, math.prod(maps["pool2"].shape[1:]))
    places = [image.shape, maps["pool0"].shape, maps["pool1"].shape, flat, (3, 7)]
    masks = [np.array(m) for m in jax.jit(lambda: Masks().apply({}, places, rngs=rngs))()]
    assert [set(np.unique(m)) for m in masks] == ([{0, 1}, *[{0, 2}] * 4] if train else [{1}] * 5)
    expected, expected_maps = forward(params, image, masks)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert set(maps) == set(expected_maps)
    for name, theirs in expected_maps.items():
        theirs = theirs.numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(maps[name], theirs, rtol=0, atol=1e-5 * np.abs(theirs).max(), err_msg=name)


def test_weights_start_between_the_limits():
    params = jax.jit(lambda: init_variables(Model(10, **SMALL), 0, (16, 16, 3))["params"])()
    for path, p in flatten_dict(params).items():
        largest = 0.005 if path[-1] == "kernel" else 0
        assert np.abs(p).max() <= largest, path
        assert np.abs(p).max() >= 0.95 * largest, path


@pytest.mark.parametrize("arg", ARGUMENTS)
def test_rates_and_norms_of_every_experiment_reach_their_layers(arg):
    """One update of weights that are far too long ends on pylearn2's norms; one of short ones shows the rates."""
    config = experiment(arg)
    dense = config.model.arguments["dense_width"] > 0
    model = Model(10, **SMALL | ({} if dense else {"dense_width": 0}))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)), train=False)["params"])
    optimizer = optim.optimizer(config, 390)
    norms = {"h0": 0.9, "h1": 1.9365, "h2": 1.9365, "h3": 1.9, "y": 1.9365}
    assert set(shapes) == set(norms) - (set() if dense else {"h3"})

    @jax.jit
    def update(weight, gradient):
        params, grads = (jax.tree.map(lambda p, v=v: jnp.full(p.shape, v), shapes) for v in (weight, gradient))
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
        return jax.tree.map(jnp.add, params, updates)

    for name, layer in update(1.0, 0.0).items():
        kernel = np.asarray(layer["kernel"], np.float64)
        lengths = np.sqrt((kernel**2).sum(tuple(range(kernel.ndim - 1))))
        np.testing.assert_allclose(lengths, norms[name], rtol=1e-5)
        assert (np.asarray(layer["bias"]) == 1).all()
    rate = {"svhn": 0.2, "mnist": 0.05}.get(arg, 0.17)
    for name, layer in update(0.0, 0.01).items():
        factor = 0.05 if name in ("h0", "h1", "h2") and arg != "mnist" else 1
        for p in layer.values():
            np.testing.assert_allclose(p, np.full(p.shape, -0.01 * rate * factor), rtol=1e-4)


@pytest.mark.parametrize(
    ("arg", "rates"),
    [
        ("cifar10", {0: 0.17, 250: 0.17 * 0.505, 500: 0.0017, 784: 0.0017}),
        ("cifar10_augmented", {0: 0.17, 250: 0.17 * 0.505, 473: 0.17 * (1 - 0.99 * 473 / 500)}),
        ("svhn", {0: 0.2, 125: 0.2 * 0.5005, 145: 0.1 * 0.2 * (1 - 0.999 * 145 / 250)}),
        ("mnist", {0: 0.05, 1: 0.05 / 1.00004**468, 100: 0.05 / 1.00004**46_800, 1000: 1e-6}),
    ],
)
def test_rates_fall_as_pylearn2s(arg, rates):
    updates = 468 if arg == "mnist" else 390
    schedule = optim.schedule(experiment(arg), updates)
    for epoch, rate in rates.items():
        assert float(schedule(epoch * updates)) == pytest.approx(rate, rel=1e-3), epoch
    if arg == "svhn":
        assert float(schedule(142 * updates + 1)) == pytest.approx(0.0086, rel=0.01)  # svhn2.yaml


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"widths": (4, 4)}, "a number for each layer"),
        ({"widths": (), "pieces": (), "kernels": (), "pads": (), "pools": ()}, "a number for each layer"),
        ({"pieces": (2, 0, 2)}, "1 or more"),
        ({"pads": (4, -1, 3)}, "0 or more"),
        ({"limit": -0.1}, "0 or more"),
        ({"kernels": (8, 40, 5)}, "kernel of 40 on 16 x 16 with pad 3"),
    ],
)
def test_numbers_that_do_not_fit(arguments, said):
    with pytest.raises(ValueError, match=said):
        jax.eval_shape(lambda: Model(10, **arguments).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))


def test_an_unknown_argument_is_refused():
    with pytest.raises(ValueError, match="unknown argument"):
        config_lib.experiment("maxout", "cifar")
