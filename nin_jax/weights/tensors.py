"""The weights alone, as safetensors: under this project's names and layout, or under PyTorch's. Written without PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from safetensors.numpy import save

from nin_jax.errors import UserError
from nin_jax.weights import pytorch
from nin_jax.weights.imported import shapes
from nin_jax.weights.network import Network


def to_safetensors(network: Network, maps: Sequence[str] = ()) -> bytes:
    """Every array under its path, such as "params/mlpconv1/conv1/kernel" or "preprocess/0/mean".

    The metadata are `Network.metadata`.
    """
    _no_maps(maps)
    numbers = network.numbers
    numbers["preprocess"] = {str(i): fitted for i, fitted in enumerate(numbers["preprocess"])}
    flat: Any = flatten_dict(numbers, sep="/")
    return save({name: np.ascontiguousarray(array) for name, array in flat.items()}, network.metadata)


def to_pytorch(network: Network, maps: Sequence[str] = ()) -> bytes:
    """PyTorch's state dict: "conv1.weight" out x in x height x width, "conv1.bias", "conv1_norm.running_mean", "fc.weight" out x in.

    `safetensors.torch.load_file` reads it for `load_state_dict`, and `nin_jax.weights.pytorch` makes a run of it. Preprocessing is
    not in it. Of layers with several filters for each map their order is that of `nin_jax.weights.pytorch`.
    """
    _no_maps(maps)
    like = shapes(network.model, network.image_shape)
    flat: Any = flatten_dict({kind: network.variables[kind] for kind in ("params", "batch_stats")})
    state: dict[str, np.ndarray] = {}
    layers = pytorch.layers_of_network(like)
    for (layer, parts), channels in zip(layers, pytorch.channels_before(layers, like["maps"]), strict=True):
        for part, (path, _) in parts.items():
            state[f"{layer}.{part}"] = pytorch.convert_back(flat[path], channels)
    return save(state, {"format": "pt", **network.metadata, pytorch.OURS: "1"})


def _no_maps(maps: Sequence[str]) -> None:
    if maps:
        raise UserError(f"maps={tuple(maps)}: a file of weights has no outputs; only onnx and stablehlo have")
