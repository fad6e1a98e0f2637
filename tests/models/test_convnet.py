"""The conventional network of table 5 against PyTorch, and its sizes by hand."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nin_jax import config as config_lib
from nin_jax.layers import Dropout
from nin_jax.models.convnet import Model
from nin_jax.training.build import Run
from nin_jax.training.describe import describe
from nin_jax.training.state import init_variables

torch = pytest.importorskip("torch", reason="PyTorch is the independent formula of the network")
F = torch.nn.functional

CONVOLUTIONS = 209_792
MACS = 32 * 32 * 25 * 3 * 64 + (16 * 16 + 8 * 8) * 25 * 64 * 64


@pytest.mark.parametrize(
    ("arg", "local", "fc"),
    [
        (None, 92_320, 0),
        ("gap", 92_320, 0),
        ("fc", 92_320, 1_610),
        ("fc_dropout", 92_320, 1_610),
        ("hinton", 147_712, 2_570),
    ],
)
def test_sizes_of_table_5(arg, local, fc, capsys):
    """4 x 4 positions, 10 or 16 maps: parameters, and multiply-adds as many as the weights of the layer and of the head."""
    run = Run(config_lib.check(config_lib.experiment("convnet", arg)))
    totals = describe(run)
    assert totals["parameters"] == CONVOLUTIONS + local + fc
    maps = run.model.local_maps
    head = 16 * maps * 10 if fc else 0
    assert totals["multiply_adds_per_image"] == MACS + 16 * 9 * 64 * maps + head
    assert "class_maps" in capsys.readouterr().out or fc


def forward(params, image: np.ndarray, mask):
    """The network as PyTorch writes it; `mask` is the factor on the input of the fully connected layer."""
    p = jax.tree.map(lambda a: torch.from_numpy(np.array(a)), params)
    x = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
    maps = {}
    for i in (1, 2, 3):
        kernel = p[f"conv{i}"]["kernel"].permute(3, 2, 0, 1)
        x = maps[f"conv{i}"] = F.relu(F.conv2d(x, kernel, p[f"conv{i}"]["bias"], padding=2))
        if i == 1:
            x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        else:
            x = F.avg_pool2d(x, 3, 2, ceil_mode=True, count_include_pad=False)
        maps[f"pool{i}"] = x
        if i < 3:
            x = maps[f"norm{i}"] = F.local_response_norm(x, 9, 0.001, 0.75)
    rows, columns = x.shape[2:]
    kernel = p["local"]["kernel"].unflatten(3, p["local"]["bias"].shape)
    patches = F.unfold(x, 3, padding=1).reshape(len(x), -1, 3, 3, rows, columns)
    x = torch.einsum("bcklij,klcijf->bfij", patches, kernel) + p["local"]["bias"].permute(2, 0, 1)
    x = maps["local"] = F.relu(x)
    if "fc" not in p:
        return x.mean((2, 3)), maps | {"class_maps": x}
    x = x.permute(0, 2, 3, 1).flatten(1) * torch.from_numpy(mask)
    return x @ p["fc"]["kernel"] + p["fc"]["bias"], maps


@pytest.mark.parametrize(
    ("arguments", "train"),
    [
        ({}, True),
        ({"head": "fc", "local_maps": 5}, True),
        ({"head": "fc_dropout"}, False),
        ({"head": "fc_dropout"}, True),
    ],
    ids=["gap", "fc", "fc_dropout in the test", "fc_dropout"],
)
def test_the_network_and_all_its_maps_equal_pytorch(arguments, train):
    """Only global average pooling has class maps; dropout is classic, so halved in the test."""

    class Mask(nn.Module):
        """What the network's dropout layer does to ones."""

        @nn.compact
        def __call__(self, shape):
            return Dropout(0.5, "classic", name="dropout_fc")(jnp.ones(shape), train=train)

    image = 3 * np.random.default_rng(0).standard_normal((2, 17, 22, 3)).astype(np.float32)
    model = Model(7, widths=(12, 8, 10), **arguments)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False)["params"])
    draw = np.random.default_rng(1)
    params = jax.tree.map(lambda p: np.float32(0.15) * draw.standard_normal(p.shape, np.float32), shapes)
    rngs = {"dropout": jax.random.key(5)} if train else {}
    logits, maps = jax.jit(lambda p, x: model.apply({"params": p}, x, train=train, rngs=rngs))(params, image)
    mask = np.float32(1)
    if model.head == "fc_dropout":
        mask = np.array(jax.jit(lambda: Mask().apply({}, (2, maps["local"][0].size), rngs=rngs))())
        assert set(np.unique(mask)) == ({0, 1} if train else {0.5})
    expected, expected_maps = forward(params, image, np.atleast_1d(mask))
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert set(maps) == set(expected_maps)
    assert ("class_maps" in maps) == (model.head == "gap")
    for name, theirs in expected_maps.items():
        theirs = theirs.numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(maps[name], theirs, rtol=0, atol=1e-5 * np.abs(theirs).max(), err_msg=name)


def test_each_layer_has_its_own_deviation():
    """Hinton's network with the deviations of its experiment."""
    run = Run(config_lib.check(config_lib.experiment("convnet", "hinton")))
    params = jax.jit(lambda: init_variables(run.model, 0, run.info.image_shape)["params"])()
    expected = {"conv1": 1e-4, "conv2": 0.01, "conv3": 0.01, "local": 0.04, "fc": 0.01}
    assert set(params) == set(expected)
    for name, deviation in expected.items():
        assert np.std(params[name]["kernel"]) == pytest.approx(deviation, rel=0.05), name
        assert not params[name]["bias"].any()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"local_maps": 16}, "local_maps=16: head 'gap' needs one map for each of 10 classes"),
        ({"pools": ("max",)}, "3 widths want as many pools"),
        ({"deviations": (0.1, 0.1, 0.1, 0.1), "head": "fc"}, "give 1 or 5"),
        ({"deviations": (-1.0,)}, "0 or more"),
        ({"widths": (4, 0, 4)}, "1 or more"),
        ({"head": "fc", "local_maps": 0}, "1 or more"),
    ],
)
def test_numbers_that_do_not_fit(arguments, said):
    with pytest.raises(ValueError, match=said):
        jax.eval_shape(lambda: Model(10, **arguments).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))


def test_an_unknown_argument_is_refused():
    with pytest.raises(ValueError, match="unknown argument"):
        config_lib.experiment("convnet", "dropout")
