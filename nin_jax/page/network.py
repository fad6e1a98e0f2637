"""A trained network as the page's JavaScript reads it: a list of convolutions and pools, with batch norm as a factor and a bias."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nin_jax.errors import UserError
from nin_jax.layers.normalisation import BatchNorm
from nin_jax.models._stages import AvgPool, Dropout, MaxPool, MLPConv, Network, named

Tree = Mapping[str, Any]


def layers(model: Any, variables: Tree) -> list[dict[str, Any]]:
    """The network's layers from the image to the class maps, whose means are the logits.

    A convolution and its batch norm are y = gain (x * kernel) + bias for each map, where with batch norm
    gain = gamma / sqrt(var + eps) and bias = beta - gain mean. What classic dropout scales in the test goes into the gain of the
    convolution after it. So the kernels stay those of a float16 file to the last bit.

    Returns:
      for each layer "op" ("conv", "max", "avg"), "name" and geometry; a "conv" has "kernel", float16 `[size, size, C, maps]`,
      "gain" and "bias", float32 `[maps]`.

    Raises:
      UserError: for networks that the page cannot compute.
    """
    if not isinstance(model, Network):
        raise UserError(f"the page computes convolutions and pools, and a {_kind(model)} network has other layers")
    if model.head != "gap":
        raise UserError(f"head={model.head!r}: the page shows class maps, whose mean is a logit only with head='gap'")
    rows: list[dict[str, Any]] = []
    keep = 1.0
    for stage, name, names in named(model.stages()):
        if isinstance(stage, MLPConv):
            if stage.groups > 1:
                raise UserError(f"stage {stage}: the page computes no groups")
            for i, layer in enumerate(stage.rows(names, model.batch_norm)):
                kernel, gain, bias = _folded(variables, name, layer.name)
                pad = stage.size // 2 if stage.pad is None else stage.pad
                window = {"size": stage.size, "stride": stage.stride, "pad": pad} if i == 0 else ONE
                arrays = {"kernel": kernel, "gain": np.float32(keep * gain), "bias": np.float32(bias)}
                counts = {"channels": kernel.shape[2], "maps": layer.features}
                rows.append({"op": "conv", "name": layer.name, **window, **counts, "relu": layer.relu, **arrays})
                keep = 1.0
        elif isinstance(stage, MaxPool):
            kind = {"op": "avg", "count_zeros": stage.count_zeros} if isinstance(stage, AvgPool) else {"op": "max"}
            rows.append({**kind, "name": name, "size": stage.size, "stride": stage.stride, "start": stage.start})
        elif isinstance(stage, Dropout):
            keep *= 1 - round(stage.rate * 65536) / 65536 if stage.kind == "classic" else 1
        else:
            raise UserError(f"stage {stage}: the page computes convolutions, pools and dropout alone")
    if keep != 1 or rows[-1]["op"] != "conv":
        raise UserError(f"the page wants a convolution as the last layer, not {rows[-1]['name']}")
    return rows


ONE = {"size": 1, "stride": 1, "pad": 0}


def _folded(variables: Tree, block: str, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Kernel (float16), gain and bias (float64) of a layer."""

    def read(collection: str, layer: str, array: str) -> np.ndarray:
        return np.asarray(variables[collection][block][layer][array], np.float64)

    kernel, norm = read("params", name, "kernel"), f"{name}_norm"
    if not np.abs(kernel).max() <= np.finfo(np.float16).max:
        raise UserError(f"layer {name}: its weights do not fit into float16")
    half = kernel.astype(np.float16)
    if norm not in variables["params"][block]:
        return half, np.ones(kernel.shape[-1]), read("params", name, "bias")
    gain = read("params", norm, "scale") / np.sqrt(read("batch_stats", norm, "var") + BatchNorm.epsilon)
    return half, gain, read("params", norm, "bias") - gain * read("batch_stats", norm, "mean")


def _kind(model: Any) -> str:
    return type(model).__module__.rpartition(".")[2]


def standardisation(ops: Sequence[Any], stats: Sequence[Tree]) -> dict[str, list[float]]:
    """Fitted preprocessing as x * scale + shift; each has a number a channel, or a number a value where the mean is by pixel.

    Raises `UserError` for ops other than mean and scale.
    """
    scale, shift = np.ones(1), np.zeros(1)
    for op, fitted in zip(ops, stats, strict=True):
        if op.name == "mean":
            mean = np.asarray(fitted["mean"], np.float64)
            shift = np.resize(shift, mean.size) - mean.ravel()
        elif op.name == "scale":
            divisor = np.asarray(fitted["divisor"], np.float64)
            size = max(shift.size, divisor.size)
            scale = np.resize(scale, divisor.size) / divisor
            shift = np.resize(shift, size) / np.resize(divisor, size)
        else:
            raise UserError(f"preprocessing {op}: the page computes mean and scale alone")
    return {"scale": scale.tolist(), "shift": shift.tolist()}


def pack(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], bytes]:
    """Layers without their kernels, as JSON takes them, and the kernels as little-endian float16, each `[maps, size, size, C]`."""
    plain, parts = [], []
    for row in rows:
        row = dict(row)
        if row["op"] == "conv":
            parts.append(np.moveaxis(row.pop("kernel"), -1, 0).astype("<f2").tobytes())
            for name in ("gain", "bias"):
                row[name] = [float(str(value)) for value in row[name]]  # the shortest digits that are this float32
        plain.append(row)
    return plain, b"".join(parts)
