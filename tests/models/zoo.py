"""A small network of every model and head of the zoo, for the tests that hold for all of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import pytest

from nin_jax import registry

CLASSES = 4


class Case(NamedTuple):
    """A model by name, its arguments, and the images it is tried with: `hypotheses` of `side` x `side` x `channels`."""

    model: str
    arguments: dict[str, Any]
    side: int = 16
    channels: int = 3
    hypotheses: int = 1

    def create(self, num_classes: int = CLASSES, **changes: Any) -> nn.Module:
        """The model."""
        return registry.create(self.model, num_classes, **self.arguments | changes)

    def variables(self, model: nn.Module, seed: int = 1) -> Any:
        """Variables drawn by NumPy, which compiles nothing: weights as "he", biases and statistics that are not 0.

        Scales of batch norm are near 1: near 0, layer after layer, all images would have the same logits.
        """
        shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), self.images(1), train=False))
        rng = np.random.default_rng(seed)

        def draw(path, p: jax.ShapeDtypeStruct) -> np.ndarray:
            noise = rng.standard_normal(p.shape, np.float32)
            if path[-1].key == "var":
                return 1 + noise**2
            if path[-1].key == "scale":
                return 1 + np.float32(0.1) * noise
            return noise * np.float32(np.sqrt(2 / np.prod(p.shape[:-1])) if path[-1].key == "kernel" else 0.1)

        return jax.tree_util.tree_map_with_path(draw, shapes)

    def images(self, batch: int, seed: int = 0) -> np.ndarray:
        """float32 `[batch, *shape]`, normally distributed."""
        return np.random.default_rng(seed).standard_normal((batch, *self.shape), np.float32)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image; hypotheses lie one below the other."""
        return self.hypotheses * self.side, self.side, self.channels


NIN = {"widths": ((24, 12, 8), (12, 8, 8), (12, 8)), "deviations": ("he",), "class_map_bias": 0.5}
NIN_IMAGENET = {
    "layers": (
        "mlpconv(maps=(12, 12, 12), size=11, stride=4, pad=0)",
        "max_pool(size=3, stride=2)",
        "mlpconv(maps=(16, 16, 16), size=5)",
        "max_pool(size=3, stride=2)",
        "mlpconv(maps=(16, 16, 16), size=3)",
        "avg_pool(size=3, stride=2)",
        "dropout(rate=0.5)",
        "mlpconv(maps=(32, 32), size=3)",
    ),
    "class_deviation": "he",
    "class_map_bias": 0.5,
}
HIDDEN = {"hidden": (24, 16), "hidden_deviation": "he", "class_deviation": "he"}
ZFNET = {
    "layers": (
        "mlpconv(maps=(12,), size=7, stride=2, pad=1)",
        "max_pool(size=3, stride=2)",
        "response_normalisation(size=5, alpha=0.0001, beta=0.75)",
        "mlpconv(maps=(24,), size=5, stride=2, pad=0)",
        "max_pool(size=3, stride=2)",
        "response_normalisation(size=5, alpha=0.0001, beta=0.75)",
        "mlpconv(maps=(24,), size=3)",
        "mlpconv(maps=(24,), size=3)",
        "max_pool(size=3, stride=2)",
    ),
    **HIDDEN,
}
NETWORK_IN_ZFNET = {
    "layers": (
        "mlpconv(maps=(12, 12), size=7, stride=2, pad=1, deviations=('he', 0.2))",
        "max_pool(size=3, stride=2)",
        "response_normalisation(size=5, alpha=0.0001, beta=0.75)",
        "mlpconv(maps=(24, 16), size=5, stride=2, pad=0)",
        "max_pool(size=3, stride=2)",
        "mlpconv(maps=(24, 16, 16), size=3, bias=0.1)",
        "max_pool(size=3, stride=2)",
    ),
    **HIDDEN,
}
ALEXNET = {
    "layers": (
        "mlpconv(maps=(12,), size=11, stride=4, pad=0)",
        "response_normalisation(size=5, alpha=0.0001, beta=0.75)",
        "max_pool(size=3, stride=2)",
        "mlpconv(maps=(32,), size=5, groups=2, bias=0.1)",
        "max_pool(size=3, stride=2)",
        "mlpconv(maps=(24,), size=3, groups=2, bias=0.1)",
        "max_pool(size=3, stride=2)",
    ),
    **HIDDEN,
}
MAXOUT = {
    "widths": (6, 4, 5),
    "pieces": (2, 3, 4),
    "kernels": (8, 8, 5),
    "pads": (4, 3, 3),
    "pools": (4, 3, 2),
    "dense_width": 7,
    "dense_pieces": 5,
    "limit": 0.1,
}
RIVAL = {"widths": (20, 8, 10)}

CASES = {
    "nin": Case("nin", NIN),
    "nin, fc": Case("nin", NIN | {"head": "fc"}),
    "nin, fc_dropout": Case("nin", NIN | {"head": "fc_dropout", "dropout_kind": "inverted"}),
    "nin, batch_norm": Case("nin", NIN | {"batch_norm": True, "relu_on_class_maps": False}),
    "nin, average pools": Case("nin", NIN | {"pools": ("avg", "avg_padded")}),
    "nin, pools from -1": Case("nin", NIN | {"pools": ("max", "avg_padded"), "pool_start": -1}, side=15, channels=1),
    "nin_imagenet": Case("nin_imagenet", NIN_IMAGENET, side=96),
    "nin_imagenet, fc": Case("nin_imagenet", NIN_IMAGENET | {"head": "fc", "batch_norm": True}, side=96),
    "nin_imagenet, fc_dropout": Case("nin_imagenet", NIN_IMAGENET | {"head": "fc_dropout"}, side=96),
    "zfnet": Case("zfnet", ZFNET, side=64),
    "network_in_zfnet": Case("network_in_zfnet", NETWORK_IN_ZFNET, side=64),
    "network_in_zfnet, gap": Case("network_in_zfnet", NETWORK_IN_ZFNET | {"head": "gap"}, side=64),
    "alexnet": Case("alexnet", ALEXNET, side=80),
    "maxout": Case("maxout", MAXOUT),
    "maxout, no dense layer": Case("maxout", MAXOUT | {"dense_width": 0}),
    "convnet": Case("convnet", RIVAL),
    "convnet, fc": Case("convnet", RIVAL | {"head": "fc", "local_maps": 5}),
    "convnet, fc_dropout": Case("convnet", RIVAL | {"head": "fc_dropout", "pools": ("avg_padded", "max", "avg")}),
    "stochastic_pooling": Case("stochastic_pooling", RIVAL),
    "hcp": Case(
        "hcp",
        {
            "network": "nin(widths=((12, 8), (12, 8)), kernels=(5, 3), pools=('max',), deviations=('he',), batch_norm=True)"
        },
        side=12,
        hypotheses=3,
    ),
    "radial_basis": Case("radial_basis", {"units": (20, 8, 10), "widths": (12, 8), "batch_norm": True}),
}

# By default each kind of layer and of head is tried once.
DEFAULT = "nin", "nin, fc", "nin, batch_norm", "nin, pools from -1", "network_in_zfnet", "maxout", "convnet"
DEFAULT += "stochastic_pooling", "nin_imagenet, fc_dropout"
NAMES = [name if name in DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
