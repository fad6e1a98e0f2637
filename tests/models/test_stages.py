"""The ImageNet nets: sizes from their sources, and values and gradients of the same networks written in PyTorch."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from nin_jax import registry
from nin_jax.errors import UserError
from nin_jax.models._stages import AvgPool, ClassMaps, Dropout, MaxPool, MLPConv, ResponseNormalisation, parse


def small(name: str, head: str | None = None) -> dict[str, Any]:
    """The model's own stages with an eighth of the maps, and few hidden units."""
    stages = [parse(stage) for stage in registry.find("models", name).Model.layers]
    stages = [
        dataclasses.replace(s, maps=tuple(n // 8 for n in s.maps), deviations=("he",)) if isinstance(s, MLPConv) else s
        for s in stages
    ]
    hidden = {} if name == "nin_imagenet" else {"hidden": (64, 48), "hidden_deviation": "he"}
    return {"layers": tuple(stages), "class_deviation": "he", **hidden} | ({"head": head} if head else {})


class Torch:
    """The four networks as PyTorch float64 functions of NCHW images and of our parameters, layer by layer as in their sources."""

    def __init__(self, params):
        import torch

        self.torch, self.f = torch, torch.nn.functional
        self.weights = {
            "/".join(path[-2:]): torch.from_numpy(np.array(value, np.float64)).requires_grad_()
            for path, value in flatten_dict(params).items()
        }

    def conv(self, x, name, stride=1, pad=0, groups=1):
        kernel, bias = self.weights[f"{name}/kernel"].permute(3, 2, 0, 1), self.weights[f"{name}/bias"]
        return self.f.relu(self.f.conv2d(x, kernel, bias, stride, pad, groups=groups))

    def pool(self, x):
        return self.f.max_pool2d(x, 3, 2, ceil_mode=True)

    def norm(self, x):
        return self.f.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=1.0)

    def full(self, x, name):
        return x @ self.weights[f"{name}/kernel"] + self.weights[f"{name}/bias"]

    def fc_head(self, x):
        x = x.permute(0, 2, 3, 1).flatten(1)  # the order of our kernel's rows
        return self.full(self.f.relu(self.full(self.f.relu(self.full(x, "fc1")), "fc2")), "fc3")

    def gap(self, x, name):
        return self.conv(x, name).mean((2, 3))

    def nin_imagenet(self, x):
        x = self.conv(self.conv(self.conv(x, "conv1", 4), "cccp1"), "cccp2")
        x = self.conv(self.conv(self.conv(self.pool(x), "conv2", 1, 2), "cccp3"), "cccp4")
        x = self.conv(self.conv(self.conv(self.pool(x), "conv3", 1, 1), "cccp5"), "cccp6")
        return self.gap(self.conv(self.conv(self.pool(x), "conv4", 1, 1), "cccp7"), "cccp8")

    def zfnet(self, x):
        x = self.norm(self.pool(self.conv(x, "conv1", 2, 1)))
        x = self.norm(self.pool(self.conv(x, "conv2", 2, 0)))
        x = self.conv(self.conv(self.conv(x, "conv3", 1, 1), "conv4", 1, 1), "conv5", 1, 1)
        return self.fc_head(self.pool(x))

    def network_in_zfnet(self, x):
        x = self.norm(self.pool(self.conv(self.conv(x, "conv1", 2, 1), "cccp1")))
        x = self.norm(self.pool(self.conv(self.conv(x, "conv2", 2, 0), "cccp2")))
        x = self.conv(self.conv(x, "conv3", 1, 1), "cccp3")
        x = self.conv(self.conv(self.conv(x, "conv4", 1, 1), "cccp4"), "cccp5")
        x = self.pool(self.conv(self.conv(x, "conv5", 1, 1), "cccp6"))
        return self.fc_head(x) if "fc1/kernel" in self.weights else self.gap(x, "cccp7")

    def alexnet(self, x):
        x = self.pool(self.norm(self.conv(x, "conv1", 4)))
        x = self.pool(self.norm(self.conv(x, "conv2", 1, 2, 2)))
        x = self.conv(self.conv(self.conv(x, "conv3", 1, 1), "conv4", 1, 1, 2), "conv5", 1, 1, 2)
        return self.fc_head(self.pool(x))


@pytest.mark.parametrize(
    ("name", "head", "side"),
    [
        pytest.param("nin_imagenet", None, 80, marks=pytest.mark.slow),
        pytest.param("zfnet", None, 80, marks=pytest.mark.slow),
        ("network_in_zfnet", None, 64),
        pytest.param("network_in_zfnet", "gap", 64, marks=pytest.mark.slow),
        pytest.param("alexnet", None, 80, marks=pytest.mark.slow),
    ],
)
def test_networks_equal_pytorch(name, head, side):
    """Logits, and the gradient of a weighted sum of them by every parameter and by the image.

    In float64, so that no pool and no ReLU is decided by rounding, which would send a gradient another way on each side.
    """
    pytest.importorskip("torch", reason="PyTorch is the independent formula of the networks")
    model = registry.create(name, 10, **small(name, head))
    rng = np.random.default_rng(1)
    image = rng.standard_normal((2, side, side, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.float32(image), train=False))["params"]
    params = unflatten_dict({path: draw(path, p.shape, rng) for path, p in flatten_dict(shapes).items()})
    cotangent = rng.standard_normal((2, 10), np.float32)

    @jax.jit
    def mine(params, image):
        wide = model.clone(dtype=jnp.float64)
        logits, pull = jax.vjp(lambda p, i: wide.apply({"params": p}, i, train=False)[0], params, image)
        return logits, *pull(cotangent)

    with jax.enable_x64(True):
        logits, by_params, by_image = jax.tree.map(np.asarray, mine(params, image))
    theirs = Torch(params)
    x = theirs.torch.from_numpy(image.transpose(0, 3, 1, 2).copy()).requires_grad_()
    expected = getattr(theirs, name)(x)
    expected.backward(theirs.torch.from_numpy(np.float64(cotangent)))
    assert_close(logits, expected.detach().numpy(), "logits")
    assert_close(by_image, x.grad.numpy().transpose(0, 2, 3, 1), "image")
    for path, gradient in flatten_dict(by_params).items():
        key = "/".join(path[-2:])
        assert_close(gradient, theirs.weights[key].grad.numpy(), key)


def draw(path: tuple[str, ...], shape: tuple[int, ...], rng) -> np.ndarray:
    """A parameter: weights as "he", and biases that are not 0; float64, but the classifier's, which is always float32."""
    deviation = np.sqrt(2 / np.prod(shape[:-1])) if path[-1] == "kernel" else 0.1
    return (deviation * rng.standard_normal(shape)).astype(np.float32 if path[0] == "fc3" else np.float64)


def assert_close(actual, expected, what: str) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max(), err_msg=what)


def shapes(name, **arguments):
    model = registry.create(name, 1000, **arguments)

    def run():
        variables = model.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)), train=False)
        return variables, model.apply(variables, jnp.zeros((1, 224, 224, 3)), train=False)

    variables, (_, maps) = jax.eval_shape(run)
    return variables["params"], {key: m.shape[1:] for key, m in maps.items()}


@pytest.mark.parametrize(
    ("name", "arguments", "count"),
    [
        ("nin_imagenet", {}, 7_595_176),  # "7.5 million"
        ("network_in_zfnet", {}, 65_630_024),
        ("network_in_zfnet", {"head": "gap"}, 65_630_024 - 58_631_144 + 257_000),
        ("alexnet", {}, 60_965_224),  # "60 million"
        # 96, 256, 512, 1024, 512 maps by 7, 5, 3, 3 and 3, then 6 x 6 x 512 to 4096 to 4096 to 1000
        ("zfnet", {}, 14_208 + 614_656 + 1_180_160 + 4_719_616 + 4_719_104 + 75_501_568 + 16_781_312 + 4_097_000),
    ],
)
def test_parameter_counts_are_those_of_the_sources(name, arguments, count):
    params, _ = shapes(name, **arguments)
    assert sum(p.size for p in jax.tree.leaves(params)) == count


def test_maps_of_nin_imagenet_are_those_of_the_prototxt():
    _, maps = shapes("nin_imagenet")
    sides = {"conv1": 54, "cccp2": 54, "pool1": 27, "conv2": 27, "pool2": 13, "conv3": 13, "pool3": 6, "conv4": 6}
    assert {key: maps[key][0] for key in sides} == sides
    assert maps["cccp8"] == maps["class_maps"] == (6, 6, 1000)


def test_network_in_zfnet_has_the_channels_of_the_slides():
    _, maps = shapes("network_in_zfnet")
    slides = {"conv1": 96, "cccp1": 96, "conv2": 256, "cccp2": 256, "conv3": 512, "cccp3": 256, "conv4": 1024}
    slides |= {"cccp4": 512, "cccp5": 384, "conv5": 512, "cccp6": 256}
    assert {key: maps[key][-1] for key in slides} == slides
    assert [maps[key][0] for key in ("conv1", "pool1", "conv2", "pool2", "conv5", "pool3")] == [110, 55, 26, 13, 13, 6]


def test_a_net_with_gap_takes_any_size_and_its_logits_are_the_mean_of_the_class_maps():
    model = registry.create("nin_imagenet", 10, **small("nin_imagenet"))
    image = np.random.default_rng(0).standard_normal((1, 160, 256, 3)).astype(np.float32)

    @jax.jit
    def run(key, image):
        return model.apply(model.init(key, image[:, :96, :96], train=False), image, train=False)

    logits, maps = run(jax.random.key(0), image)
    assert maps["class_maps"].shape == (1, 4, 7, 10)
    np.testing.assert_allclose(logits, np.asarray(maps["class_maps"]).mean((1, 2)), rtol=1e-5, atol=1e-6)


def test_dropout_of_the_fc_heads_lies_between_the_fully_connected_layers():
    """Without hidden layers: on the class maps, so that half of the classifier's inputs are 0 in training."""
    arguments = {"layers": ("mlpconv(maps=(4,), size=3)",), "head": "fc_dropout", "class_deviation": "he"}
    model = registry.create("nin_imagenet", 2, **arguments)
    image = np.ones((4, 8, 8, 3), np.float32)
    variables = model.init({"params": jax.random.key(0)}, image, train=False)
    assert list(variables["params"]) == ["mlpconv1", "class_maps", "fc1"]
    rngs = {"dropout": jax.random.key(1)}
    trained = [model.apply(variables, image, train=True, rngs=rngs)[0] for _ in range(2)]
    np.testing.assert_array_equal(*trained)
    assert not np.allclose(trained[0], model.apply(variables, image, train=False)[0])


def test_stages_print_as_the_calls_that_are_read():
    """What configs hold: arguments that are the default are left out of an mlpconv."""
    calls = {
        "mlpconv(maps=(96, 96), size=7, stride=2, pad=1, deviations=(0.01, 'he'))": MLPConv(
            (96, 96), size=7, stride=2, pad=1, deviations=(0.01, "he")
        ),
        "mlpconv(maps=(256,), size=5, groups=2, bias=0.1)": MLPConv((256,), size=5, groups=2, bias=0.1),
        "max_pool(size=3, stride=2)": MaxPool(),
        "avg_pool(size=3, stride=2, start=-1, count_zeros=True)": AvgPool(start=-1, count_zeros=True),
        "response_normalisation(size=5, alpha=0.0001, beta=0.75)": ResponseNormalisation(),
        "dropout(rate=0.5)": Dropout(),
    }
    for call, stage in calls.items():
        assert str(stage) == call
        assert parse(call) == stage
        assert parse(stage) is stage


@pytest.mark.parametrize("name", registry.names("models"))
def test_the_stages_of_every_model_print_as_calls(name):
    model = registry.create(name, 10)
    for stage in model.stages() if hasattr(model, "stages") else ():
        assert isinstance(stage, ClassMaps) or parse(str(stage)) == stage


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("max_poll()", "max_pool"),
        ("mlpconv(maps=(8,), sizes=3)", "size"),
        ("mlpconv(maps=8)", "tuple"),
        ("mlpconv(maps=(8,), size='3')", "int"),
        ("max_pool(2)", "keyword"),
        ("mlpconv()", "maps"),
        ("mlpconv(maps=(8, 0))", "1 or more"),
        ("mlpconv(maps=(8,), size=4)", "odd"),
        ("mlpconv(maps=(8,), deviations=(0.1, 0.1))", "give 1 or 1"),
        ("mlpconv(maps=(8,), deviations=(-1,))", "0 or more"),
        (3, "must be a call"),
    ],
)
def test_a_wrong_stage_is_named(call, said):
    with pytest.raises(UserError, match=said):
        parse(call)
