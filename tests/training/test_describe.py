"""The size and the cost of the paper's networks, from the real experiments; counts against formulas by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from nin_jax import config as config_lib
from nin_jax import main
from nin_jax.layers import Conv, max_pool
from nin_jax.training.build import Run
from nin_jax.training.describe import describe, multiply_adds


@pytest.mark.parametrize(
    ("name", "parameters"), [("cifar10", 966_986), ("cifar100", 984_356), ("mnist", 349_674), ("svhn", 1_986_026)]
)
def test_parameters_of_the_papers_networks(name, parameters, capsys):
    totals = describe(Run(config_lib.check(config_lib.experiment(name))))
    assert totals["parameters"] == parameters
    assert f"parameters: {parameters:,} (" in capsys.readouterr().out


def test_operations_of_the_cifar10_network():
    """222.5 million multiply-adds a picture, which is also what the table of layers gives by hand."""
    totals = describe(Run(config_lib.check(config_lib.experiment("cifar10"))))
    by_hand = (
        32 * 32 * (25 * 3 * 192 + 192 * 160 + 160 * 96)
        + 16 * 16 * (25 * 96 * 192 + 192 * 192 + 192 * 192)
        + 8 * 8 * (9 * 192 * 192 + 192 * 192 + 192 * 10)
    )
    assert totals["multiply_adds_per_image"] == by_hand
    assert totals["flops_per_image"] == pytest.approx(2 * 222.5e6, rel=0.01)
    assert totals["data_bytes"] == 60_000 * 32 * 32 * 3
    assert totals["state_bytes"] == 3 * 4 * 966_986


def convolve(x, kernel, **arguments):
    arguments = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": ("NHWC", "HWIO", "NHWC")} | arguments
    return lax.conv_general_dilated(x, kernel, **arguments)


@pytest.mark.parametrize(
    ("f", "shapes", "expected"),
    [
        (convolve, [(2, 9, 7, 3), (5, 3, 3, 4)], 2 * 9 * 7 * 4 * 5 * 3 * 3),
        (
            lambda x, k: convolve(x, k, window_strides=(4, 4), padding="VALID"),
            [(1, 11, 11, 3), (3, 3, 3, 8)],
            3 * 3 * 8 * 3 * 3 * 3,
        ),
        (
            lambda x, k: convolve(x, k, feature_group_count=2),
            [(1, 5, 5, 6), (3, 3, 3, 8)],
            5 * 5 * 8 * 3 * 3 * 3,
        ),
        (
            lambda x, k: convolve(x, k, dimension_numbers=("NCHW", "OIHW", "NCHW")),
            [(1, 3, 5, 6), (8, 3, 3, 3)],
            5 * 6 * 8 * 3 * 3 * 3,
        ),
        (jnp.matmul, [(4, 5), (5, 6)], 4 * 5 * 6),
        (lambda a, b: jnp.einsum("bij,bjk->bik", a, b), [(3, 4, 5), (3, 5, 6)], 3 * 4 * 5 * 6),
        (jax.jit(lambda a, b: jax.checkpoint(jnp.matmul)(a, b)), [(4, 5), (5, 6)], 4 * 5 * 6),
        (lambda x: Conv(4, 3).init_with_output(jax.random.key(0), x)[0], [(1, 6, 6, 2)], 6 * 6 * 4 * 3 * 3 * 2),
        (lambda x: jnp.sum(max_pool(x) * 2), [(1, 6, 6, 2)], 0),
    ],
    ids=["conv", "strides", "groups", "nchw", "matmul", "batched", "nested", "layer", "nothing"],
)
def test_multiply_adds(f, shapes, expected):
    assert multiply_adds(f, *[jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]) == expected


def test_nin_imagenet_is_as_large_as_the_slides_say(capsys):
    """ "7.5 million" parameters, "29 Megabytes"; multiply-adds by hand from the maps and kernels of the model zoo's file."""
    totals = describe(Run(main.parse(["nin_jax", "--config=imagenet"]).config))
    assert "parameters: 7,595,176 (28.97 MiB)" in capsys.readouterr().out
    assert totals["multiply_adds_per_image"] == (
        54**2 * (11**2 * 3 * 96 + 2 * 96**2)
        + 27**2 * (5**2 * 96 * 256 + 2 * 256**2)
        + 13**2 * (3**2 * 256 * 384 + 2 * 384**2)
        + 6**2 * (3**2 * 384 * 1024 + 1024**2 + 1024 * 1000)
    )
