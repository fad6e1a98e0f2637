"""ONNX: the network as a graph for onnxruntime and whatever else reads it, for any batch size, without JAX.

    session = onnxruntime.InferenceSession("nin.onnx")
    (logits,) = session.run(["logits"], {"images": images})

The graph has what an ONNX user expects: maps lie channels first, 1x1 layers are Conv with their bias, the shifted slices of a
pool are MaxPool or AveragePool, response normalisation is LRN, and batch normalisation is folded into the weights.

It is written from the traced function by this project and `onnx` alone, so networks outside the zoo work too. jax2onnx 0.17
gives right numbers as well, but writes a pool as its nine slices (for a symbolic batch, when pools were still indexed, as 18
GatherND and 90 Concat in `nin`), brings netron and equinox along, and pins orbax. The way over TensorFlow needs TensorFlow.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax

from nin_jax.errors import UserError
from nin_jax.runs.provenance import versions
from nin_jax.weights.network import Network, tracing
from nin_jax.weights.onnx.traced import trace

OPSET = 18  # of December 2022: the first whose Pad and ReduceMean name their axes as inputs
INPUT = "images"


def to_model(network: Network, maps: Sequence[str] = ()) -> Any:
    """The network as an `onnx.ModelProto` with the input "images" and the outputs "logits" and each of `maps`.

    "images" is uint8 `[batch, H, W, C]`, or float32 where they come preprocessed; logits are float32 `[batch, K]`, maps
    `[batch, H, W, C]`. The metadata are `Network.metadata`. Raises `UserError` for a network with an operation that has no
    translation.
    """
    try:
        from onnx import helper

        from nin_jax.weights.onnx.operations import translate
    except ImportError as error:
        raise UserError('format "onnx" needs onnx: python -m pip install "nin_jax[onnx]"') from error
    network = network.folded()
    (batch,) = jax.export.symbolic_shape("batch")
    apply: Any = functools.partial(network, maps=tuple(maps))
    with tracing():
        traced = trace(apply, network.numbers, network.images(batch))
    graph = translate(traced, INPUT)
    model = helper.make_model(
        graph.proto({INPUT: traced.input}, {name: traced.outputs[name] for name in ("logits", *maps)}),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=helper.find_min_ir_version_for([helper.make_opsetid("", OPSET)]),
        producer_name="nin_jax",
        producer_version=versions()["nin_jax"],
    )
    helper.set_model_props(model, network.metadata)
    return model


def to_bytes(network: Network, maps: Sequence[str] = ()) -> bytes:
    """The file."""
    return to_model(network, maps).SerializeToString()
