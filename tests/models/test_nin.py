"""The whole network against PyTorch: forward, with dropout, and three updates."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nin_jax import config as config_lib
from nin_jax.layers import Dropout
from nin_jax.models.nin import Model
from nin_jax.training import optim

torch = pytest.importorskip("torch", reason="PyTorch is the independent formula of the network")
F = torch.nn.functional

CIFAR10 = {"kernels": (5, 5, 3), "widths": ((192, 160, 96), (192, 192, 192), (192, 192))}
MNIST = {"kernels": (5, 5, 5), "widths": ((96, 64, 48), (128, 96, 48), (128, 96))}
SMALL = {"kernels": (5, 5, 3), "widths": ((12, 8, 8), (12, 8, 8), (12, 8))}
NAMES = (("conv1", "cccp1", "cccp2"), ("conv2", "cccp3", "cccp4"), ("conv3", "cccp5", "cccp6"))


def images(batch: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, *shape)).astype(np.float32)


def init(model: nn.Module, image: np.ndarray):
    """Parameters drawn by NumPy; the biases are not 0, which would hide what happens to them."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.asarray(image[:1]), train=False)["params"])
    draw = np.random.default_rng(0)

    def one(p) -> np.ndarray:
        deviation = 0.05 if len(p.shape) == 1 else np.sqrt(2 / np.prod(p.shape[:-1]))
        return np.float32(deviation) * draw.standard_normal(p.shape, np.float32)

    return jax.tree.map(one, shapes)


def to_torch(params) -> dict[str, dict]:
    """The same parameters, layer by layer: kernels out, in, height, width."""
    layers = {}
    for block, names in enumerate(NAMES, 1):
        for name in names:
            p = params[f"mlpconv{block}"][name]
            kernel = np.ascontiguousarray(np.asarray(p["kernel"]).transpose(3, 2, 0, 1))
            layers[name] = {
                "kernel": torch.from_numpy(kernel).requires_grad_(),
                "bias": torch.from_numpy(np.array(p["bias"])).requires_grad_(),
            }
    return layers


def forward(layers, image: np.ndarray, pools=("max", "max"), relu_on_class_maps=True, masks=(None, None)):
    """Network In Network as PyTorch writes it."""
    x = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
    maps = {}
    for block, names in enumerate(NAMES, 1):
        for name in names:
            kernel = layers[name]["kernel"]
            x = F.conv2d(x, kernel, layers[name]["bias"], padding=kernel.shape[-1] // 2)
            if name != "cccp6" or relu_on_class_maps:
                x = F.relu(x)
            maps[name] = x
        if block < 3:
            if pools[block - 1] == "max":
                x = F.max_pool2d(x, 3, 2, ceil_mode=True)
            else:
                x = F.avg_pool2d(x, 3, 2, ceil_mode=True, count_include_pad=False)
            maps[f"pool{block}"] = x
            if masks[block - 1] is not None:
                x = x * torch.from_numpy(masks[block - 1].transpose(0, 3, 1, 2).copy())
    maps["class_maps"] = x
    return x.mean((2, 3)), maps


def assert_close(actual, expected, tolerance: float, what: str = "") -> None:
    """Largest difference at most `tolerance` of the largest expected number."""
    atol = tolerance * np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol, err_msg=what)


@pytest.mark.parametrize(
    ("table", "shape", "arguments"),
    [
        (CIFAR10, (32, 32, 3), {}),
        (MNIST, (28, 28, 1), {}),
        (SMALL, (17, 22, 3), {"pools": ("avg", "max"), "relu_on_class_maps": False}),
    ],
    ids=["cifar10", "mnist", "small"],
)
def test_the_network_and_all_its_maps_equal_pytorch(table, shape, arguments):
    image = images(2, *shape)
    model = Model(10, **table, **arguments)
    params = init(model, image)
    logits, maps = jax.jit(lambda p, x: model.apply({"params": p}, x, train=False))(params, image)
    keep = 0.5  # the default, classic dropout: each pool's output is halved in the test
    with torch.no_grad():
        expected, expected_maps = forward(to_torch(params), image, masks=(np.float32([[[[keep]]]]),) * 2, **arguments)
    assert logits.dtype == jnp.float32
    assert_close(logits, expected.numpy(), 1e-5)
    assert set(maps) == set(expected_maps)
    for name, theirs in expected_maps.items():
        assert_close(maps[name], theirs.numpy().transpose(0, 2, 3, 1), 1e-5, name)


@pytest.mark.parametrize(("kind", "scale"), [("classic", 1), ("inverted", 2)])
def test_dropout_lies_after_each_pool(kind, scale):
    """In training the network equals PyTorch's with the very same masks on the pools' outputs."""

    class Masks(nn.Module):
        """What the network's dropout layers do to ones."""

        @nn.compact
        def __call__(self, shapes):
            return [Dropout(0.5, kind, name=f"dropout{i}")(jnp.ones(s), train=True) for i, s in enumerate(shapes, 1)]

    image = images(3, 16, 16, 3)
    model = Model(10, dropout_kind=kind, **SMALL)
    params = init(model, image)
    rngs = {"dropout": jax.random.key(5)}
    masks = [np.asarray(m) for m in Masks().apply({}, [(3, 8, 8, 8), (3, 4, 4, 8)], rngs=rngs)]
    assert set(np.unique(masks[0])) == {0, scale}
    logits, _ = jax.jit(lambda p, x: model.apply({"params": p}, x, train=True, rngs=rngs))(params, image)
    with torch.no_grad():
        expected, _ = forward(to_torch(params), image, masks=masks)
    assert_close(logits, expected.numpy(), 1e-5)


def sgd_groups(layers, config) -> list[dict]:
    """PyTorch's parameter groups for the experiment's rates: bias twice; cccp6 kernel a tenth, bias a fifth."""
    o, groups = config.optimizer, []
    for name, layer in layers.items():
        kernel, bias = (0.1, 0.2) if name == "cccp6" else (1, 2)
        groups.append(
            {"params": [layer["kernel"]], "lr": o.learning_rate * kernel, "weight_decay": o.weight_decay},
        )
        groups.append({"params": [layer["bias"]], "lr": o.learning_rate * bias, "weight_decay": 0.0})
    return groups


@pytest.mark.parametrize(
    ("arg", "table", "clip_norm", "weight_decay", "size", "batch"),
    [
        pytest.param(None, CIFAR10, 0.1, 1e-4, 32, 8, id="cifar10", marks=pytest.mark.slow),
        pytest.param("release", SMALL, 0.0, 0.05, 16, 4, id="small"),
    ],
)
def test_three_updates_equal_pytorchs_sgd(arg, table, clip_norm, weight_decay, size, batch):
    """With experiments/cifar10.py's own optimiser, clipped on the real network, and with much decay on a small one."""
    c = config_lib.experiment("cifar10", arg)
    c.optimizer.update({"clip_norm": clip_norm, "weight_decay": weight_decay})
    config = config_lib.check(c)
    model = Model(10, dropout=0.0, **table)
    steps = [(images(batch, size, size, 3, seed=k), np.random.default_rng(k).integers(0, 10, batch)) for k in range(3)]
    params = start = init(model, steps[0][0])
    layers = to_torch(params)

    optimizer = optim.optimizer(config, 390)
    state = optimizer.init(params)

    @jax.jit
    def update(params, state, image, label):
        def loss(params):
            logits, _ = model.apply({"params": params}, image, train=True)
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, label))

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    sgd = torch.optim.SGD(sgd_groups(layers, config), momentum=config.optimizer.momentum)
    tensors = [p for layer in layers.values() for p in layer.values()]
    for image, label in steps:
        params, state = update(params, state, image, jnp.asarray(label, jnp.int32))
        sgd.zero_grad()
        F.cross_entropy(forward(layers, image)[0], torch.from_numpy(label)).backward()
        if config.optimizer.clip_norm:
            norm = float(torch.sqrt(sum((p.grad.double() ** 2).sum() for p in tensors)))
            assert norm > config.optimizer.clip_norm
            for p in tensors:
                p.grad *= config.optimizer.clip_norm / norm
        sgd.step()

    for block, names in enumerate(NAMES, 1):
        for name in names:
            mine, before, theirs = params[f"mlpconv{block}"][name], start[f"mlpconv{block}"][name], layers[name]
            kernel = theirs["kernel"].detach().numpy().transpose(2, 3, 1, 0)
            assert_close(mine["kernel"], kernel, 1e-5, name)
            assert_close(mine["bias"], theirs["bias"].detach().numpy(), 1e-5, name)
            # What the three updates changed is right too, not only the sum of it and of the start.
            assert_close(mine["kernel"] - before["kernel"], kernel - np.asarray(before["kernel"]), 0.01, name)


def test_heads_on_the_class_maps():
    """Table 5: "fc" is a matrix product over the flattened class maps; "fc_dropout" drops half of them in training."""
    image = images(2, 9, 9, 3)
    for head, keep in (("fc", 1.0), ("fc_dropout", 0.5)):
        model = Model(7, head=head, **SMALL)
        params = init(model, image)
        logits, maps = jax.jit(lambda p, x, model=model: model.apply({"params": p}, x, train=False))(params, image)
        flat = np.asarray(maps["class_maps"], np.float64).reshape(2, -1)
        expected = keep * flat @ np.asarray(params["fc"]["kernel"], np.float64) + np.asarray(params["fc"]["bias"])
        assert_close(logits, expected, 1e-5)


@pytest.mark.parametrize(
    "wrong",
    [{"kernels": (5, 5)}, {"pools": ("max",)}, {"deviations": (0.1, 0.2)}],
)
def test_tables_that_do_not_fit_are_refused(wrong):
    with pytest.raises(ValueError, match=r"widths want as many kernels|give 1 or 9"):
        Model(10, **SMALL | wrong)


def test_in_bfloat16_every_map_is_bfloat16_and_logits_are_not():
    model, image = Model(**SMALL, num_classes=3, dtype=jnp.bfloat16), images(2, 8, 8, 3)
    logits, maps = jax.eval_shape(lambda p: model.apply({"params": p}, image, train=False), init(model, image))
    assert logits.dtype == jnp.float32
    assert {x.dtype for x in maps.values()} == {jnp.dtype("bfloat16")}


def test_kernels_of_even_size_and_empty_widths_are_refused():
    for wrong in ({"kernels": (5, 4, 3)}, {"widths": ((12, 0), (12,), (12,))}, {"widths": ((), (12,), (12,))}):
        with pytest.raises(ValueError, match=r"odd|1 or more"):
            Model(10, **SMALL | wrong)


def test_global_average_pooling_is_a_fixed_block_diagonal_fully_connected_layer():
    """Section 3.2: a matrix with a block for each class, 1 / (h w) in it and 0 elsewhere. The same logits, bit for bit.

    The class maps are whole numbers here and have 64 positions, so no sum and no product rounds.
    """
    head = {"kernels": (1,), "widths": ((),), "pools": (), "relu_on_class_maps": False}
    image = jnp.asarray(np.random.default_rng(0).integers(-50, 50, (5, 8, 8, 3)), jnp.float32)
    weights = np.random.default_rng(1).integers(-9, 9, (1, 1, 3, 10)).astype(np.float32)
    params = {"mlpconv1": {"conv1": {"kernel": weights, "bias": np.arange(10, dtype=np.float32)}}}
    averaged, maps = Model(10, **head).apply({"params": params}, image, train=False)
    assert maps["class_maps"].shape == (5, 8, 8, 10)

    by_class = np.kron(
        np.eye(10), np.full((64, 1), 1 / 64)
    )  # rows: the positions of class 0, then those of class 1, ...
    matrix = by_class.reshape(10, 64, 10).swapaxes(0, 1).reshape(640, 10).astype(np.float32)  # as maps are flattened
    fixed = params | {"fc": {"kernel": matrix, "bias": np.zeros(10, np.float32)}}
    connected, _ = Model(10, **head, head="fc").apply({"params": fixed}, image, train=False)
    np.testing.assert_array_equal(connected, averaged)
    assert np.ptp(averaged) > 1
