"""What the page computes is the network: its layers against JAX's own, and its JavaScript in Node."""

from __future__ import annotations

import base64
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from nin_jax import layers as jax_layers
from nin_jax import registry
from nin_jax.errors import UserError
from nin_jax.page import network
from tests.page.node import needs_node, run

SHAPE = (9, 10, 3)
SMALL = {"kernels": (5, 3, 3), "widths": ((5, 4), (6, 7), (5,)), "dropout": 0.3}
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch_norm": {"batch_norm": True, "dropout_kind": "inverted", "relu_on_class_maps": False},
    "average": {"pools": ("avg", "avg_padded"), "batch_norm": True},
    "padded": {"pool_start": -1, "pools": ("max", "avg")},
}
STAGES = ("mlpconv(maps=(4, 5), size=4, stride=2, pad=1)", "max_pool(size=2, stride=2)", "mlpconv(maps=(6,), size=3)")
IMAGES = np.random.default_rng(0).integers(0, 256, (3, *SHAPE), np.uint8)


def made(name: str = "nin", **arguments: Any) -> tuple[Any, Any]:
    """A network and random variables, batch norm's among them, with float16 kernels as in a shipped file."""
    model = registry.find("models", name).Model(4, **arguments)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *SHAPE)), train=False))
    rng = np.random.default_rng(1)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        if path[-1].key == "kernel":
            values = rng.normal(0, 1.5 / np.sqrt(np.prod(leaf.shape[:-1])), leaf.shape).astype(np.float16)
        else:
            values = rng.uniform(0.5, 1.5, leaf.shape)
        return values.astype(np.float32)

    return model, jax.tree_util.tree_map_with_path(draw, shapes)


NETWORKS = {
    **{form: lambda arguments=arguments: made(**SMALL | arguments) for form, arguments in FORMS.items()},
    "strided": lambda: made("nin_imagenet", layers=STAGES, batch_norm=True),
}


def calls(name: str, *texts: str) -> list[Any]:
    return [registry.call(name, text) for text in texts]


@pytest.fixture(scope="module")
def standardised() -> tuple[dict[str, list[float]], np.ndarray]:
    """Preprocessing as the page has it, and the preprocessed images."""
    ops = calls("preprocess", "mean(per='pixel')", "scale()")
    stats = [{"mean": IMAGES.mean(0, np.float32)}, {"divisor": np.float32([60, 50, 70])}]
    x = (IMAGES.astype(np.float32) - stats[0]["mean"]) / stats[1]["divisor"]
    return network.standardisation(ops, stats), x


def follow(rows: list[dict[str, Any]], x: jax.Array) -> jax.Array:
    """The layers by XLA's convolution, and the pools of `layers`."""
    for row in rows:
        if row["op"] == "conv":
            kernel, pad = jnp.asarray(row["kernel"], jnp.float32), (row["pad"], row["pad"])
            form = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
            y = lax.conv_general_dilated(x, kernel, (row["stride"],) * 2, (pad, pad), **form)
            y = y * row["gain"][None, None, None] + row["bias"][None, None, None]
            x = jax.nn.relu(y) if row["relu"] else y
        elif row["op"] == "max":
            x = jax_layers.max_pool(x, row["size"], row["stride"], row["start"])
        else:
            x = jax_layers.avg_pool(x, row["size"], row["stride"], row["start"], count_zeros=row["count_zeros"])
    return x.mean((1, 2))


@pytest.mark.parametrize("form", NETWORKS)
def test_the_pages_network_is_the_models(form, standardised):
    """To 1e-5 of the largest logit: the layers without batch norm and dropout, and then the JavaScript, every map too."""
    model, variables = NETWORKS[form]()
    preprocessing, x = standardised
    logits, maps = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, x)
    rows = network.layers(model, variables)
    close = {"rtol": 0, "atol": 1e-5 * float(jnp.abs(logits).max())}
    assert [row["name"] for row in rows] == [name for name in sorted(maps, key=order(rows)) if name != "class_maps"]
    np.testing.assert_allclose(jax.jit(lambda x: follow(rows, x))(x), logits, **close)
    if needs_node.args[0]:
        return
    plain, weights = network.pack(rows)
    described = {"shape": SHAPE, "layers": plain, **preprocessing}
    argument = {"d": described, "w": base64.b64encode(weights).decode(), "images": IMAGES.reshape(3, -1).tolist()}
    buffer = "Uint8Array.from(Buffer.from(argument.w, 'base64')).buffer"
    plain_maps = "maps.map(({values, ...map}) => ({...map, values: [...values]}))"
    forward = f"(({{logits, maps}}) => ({{logits: [...logits], maps: {plain_maps}}}))(forward(network, pixels))"
    found = run(
        "network.js",
        f"((network) => argument.images.map((pixels) => {forward}))(build(argument.d, {buffer}))",
        argument,
    )
    np.testing.assert_allclose([answer["logits"] for answer in found], logits, **close)
    for i, answer in enumerate(found):
        for page in answer["maps"]:
            mine, size = np.asarray(maps[page["name"]][i]), (page["height"], page["width"], page["channels"])
            assert mine.shape == size
            np.testing.assert_allclose(
                np.reshape(page["values"], size), mine, rtol=0, atol=1e-5 * np.abs(mine).max(), err_msg=page["name"]
            )


def order(rows: list[dict[str, Any]]) -> Any:
    names = [row["name"] for row in rows]
    return lambda name: names.index(name) if name in names else len(names)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({**SMALL, "head": "fc"}, "head='fc'"),
        ({"name": "maxout"}, "a maxout network has other layers"),
        ({"name": "nin_imagenet", "layers": ("mlpconv(maps=(4,))", "response_normalisation()")}, "response_normalisation"),
        ({"name": "nin_imagenet", "layers": ("mlpconv(maps=(6,))", "mlpconv(maps=(4,), groups=2)")}, "no groups"),
    ],
)  # fmt: skip
def test_a_network_that_the_page_cannot_compute_is_refused(arguments, why):
    arguments = {"name": "nin", **arguments}
    model = registry.find("models", arguments.pop("name")).Model(4, **arguments)
    with pytest.raises(UserError, match=why):
        network.layers(model, made(**SMALL)[1] if "kernels" in arguments else NoVariables())


class NoVariables(dict):
    """Variables of ones for any path."""

    def __missing__(self, key: str) -> Any:
        return np.ones((1, 1, 3, 4)) if key in ("kernel", "bias") else self

    def __contains__(self, key: object) -> bool:
        return not str(key).endswith("_norm")


def test_weights_that_float16_does_not_hold_are_refused():
    model, variables = made(**SMALL)
    variables["params"]["mlpconv1"]["conv1"]["kernel"][0] = 1e6
    with pytest.raises(UserError, match="layer conv1: its weights do not fit"):
        network.layers(model, variables)


def test_preprocessing_other_than_mean_and_scale_is_refused():
    with pytest.raises(UserError, match="preprocessing gcn"):
        network.standardisation(calls("preprocess", "gcn(scale=55)"), [{}])


@needs_node
def test_float16_is_read_to_the_last_bit():
    bits = np.arange(65536, dtype=np.uint16)
    wanted = bits.view(np.float16)
    finite = np.isfinite(wanted)
    found = run("network.js", "[...halves(Uint16Array.from(argument))]", bits[finite].tolist())
    assert np.array_equal(np.float32(found), wanted[finite].astype(np.float32))
