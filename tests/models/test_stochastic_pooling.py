"""The network of stochastic pooling against PyTorch, its draws, and the rates of its experiments."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nin_jax import config as config_lib
from nin_jax.models.stochastic_pooling import Model
from nin_jax.training import optim
from nin_jax.training.build import Run
from nin_jax.training.describe import describe

torch = pytest.importorskip("torch", reason="PyTorch is the independent formula of the network")
F = torch.nn.functional

SMALL = {"widths": (12, 8, 10)}


def experiment(arg: str | None):
    return config_lib.check(config_lib.experiment("stochastic_pooling", arg))


@pytest.mark.parametrize(
    ("arg", "channels", "widths", "inputs", "classes"),
    [
        (None, 3, (64, 64, 64), 4 * 4 * 64, 10),
        ("cifar10", 3, (64, 64, 64), 4 * 4 * 64, 10),
        ("cifar100", 3, (64, 64, 64), 4 * 4 * 64, 100),
        ("svhn", 3, (64, 64, 128), 4 * 4 * 128, 10),
        ("mnist", 1, (64, 64, 64), 3 * 3 * 64, 10),
    ],
)
def test_parameters_and_rates_of_every_experiment(arg, channels, widths, inputs, classes, capsys):
    """By hand; 209,792 of them are in the convolutions of CIFAR. Rates 0.01 and 1, a hundredth of that at the end."""
    config = experiment(arg)
    fan_in = (channels, *widths[:-1])
    expected = sum((25 * a + 1) * b for a, b in zip(fan_in, widths, strict=True))
    assert expected == 209_792 or arg in ("svhn", "mnist")
    assert describe(Run(config))["parameters"] == expected + (inputs + 1) * classes
    schedule = optim.schedule(config, 390)
    ends = [float(schedule(n)) for n in (0, 390 * config.epochs // 2, 390 * config.epochs)]
    assert ends == pytest.approx([0.01, 0.01 * 0.505, 0.0001], rel=1e-3)
    params = {name: {"kernel": jnp.ones((1, 1)), "bias": jnp.ones((1,))} for name in ("conv1", "conv3", "fc")}
    optimizer = optim.optimizer(config, 390)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    for name, rate in (("conv1", 0.01), ("conv3", 0.01), ("fc", 1.0)):
        assert float(updates[name]["kernel"][0, 0]) == pytest.approx(-rate * 1.001)  # with the weight decay of 0.001
        assert float(updates[name]["bias"][0]) == pytest.approx(-rate)


def setup(seed: int = 0):
    image = 3 * np.random.default_rng(seed).standard_normal((2, 17, 22, 3)).astype(np.float32)
    model = Model(7, **SMALL)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False)["params"])
    draw = np.random.default_rng(1)
    return model, jax.tree.map(lambda p: np.float32(0.15) * draw.standard_normal(p.shape, np.float32), shapes), image


def test_in_the_test_the_network_and_all_its_maps_equal_pytorch():
    model, params, image = setup()
    logits, maps = jax.jit(lambda p, x: model.apply({"params": p}, x, train=False))(params, image)
    p = jax.tree.map(lambda a: torch.from_numpy(np.array(a)), params)
    x = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
    expected = {}
    for i in (1, 2, 3):
        kernel = p[f"conv{i}"]["kernel"].permute(3, 2, 0, 1)
        x = expected[f"conv{i}"] = F.relu(F.conv2d(x, kernel, p[f"conv{i}"]["bias"], padding=2))
        sums = [F.avg_pool2d(a, 3, 2, ceil_mode=True, count_include_pad=False) for a in (x * x, x)]
        x = expected[f"pool{i}"] = torch.where(sums[1] == 0, torch.zeros(()), sums[0] / sums[1])
        x = expected[f"norm{i}"] = F.local_response_norm(x, 9, 0.001, 0.75)
    theirs = x.permute(0, 2, 3, 1).flatten(1) @ p["fc"]["kernel"] + p["fc"]["bias"]
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))
    assert set(maps) == set(expected)  # so no class maps
    for name, m in expected.items():
        m = m.numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(maps[name], m, rtol=0, atol=1e-5 * np.abs(m).max(), err_msg=name)


def test_in_training_every_pool_holds_an_element_of_each_window():
    """And other ones in another step; the draws of an example go with its number, not with its place."""
    model, params, image = setup()

    @jax.jit
    def apply(key, example, image):
        return model.apply({"params": params}, image, train=True, example=example, rngs={"dropout": key})

    logits, maps = apply(jax.random.key(0), jnp.arange(2), image)
    for i in (1, 2, 3):
        before, after = np.asarray(maps[f"conv{i}"]), np.asarray(maps[f"pool{i}"])
        for b, row, column in np.ndindex(*after.shape[:3]):
            window = before[b, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            assert (window == after[b, row, column]).any((0, 1)).all()
            assert ((after[b, row, column] > 0) == window.any((0, 1))).all()
    assert not np.array_equal(apply(jax.random.key(1), jnp.arange(2), image)[0], logits)
    np.testing.assert_allclose(apply(jax.random.key(0), jnp.array([1, 0]), image[::-1])[0][::-1], logits, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"deviations": (0.1, 0.1)}, "1 or 4"),
        ({"deviations": (-1.0,)}, "0 or more"),
        ({"widths": (4, 0, 4)}, "1 or more"),
        ({"widths": ()}, "1 or more"),
    ],
)
def test_numbers_that_do_not_fit(arguments, said):
    with pytest.raises(ValueError, match=said):
        jax.eval_shape(lambda: Model(10, **arguments).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))


def test_an_unknown_argument_is_refused():
    with pytest.raises(ValueError, match="unknown argument"):
        config_lib.experiment("stochastic_pooling", "digits")
