"""A trained network as a file for somewhere else; docs/export.md says what each format is good for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn

from nin_jax.errors import UserError, nearest
from nin_jax.storage import expanded, write_whole
from nin_jax.training.predict import Predictor
from nin_jax.weights import onnx, stablehlo, tensors
from nin_jax.weights.network import Network

# Each format, and how its bytes are made: (network, maps) -> bytes.
FORMATS: dict[str, Callable[[Network, Sequence[str]], bytes]] = {
    "onnx": onnx.to_bytes,
    "stablehlo": stablehlo.to_bytes,
    "safetensors": tensors.to_safetensors,
    "pytorch": tensors.to_pytorch,
}


def export(
    source: Predictor | Network | tuple[nn.Module, Any, tuple[int, int, int]],
    format: str,
    path: str | Path,
    *,
    preprocessing: bool = True,
    maps: Sequence[str] = (),
) -> Path:
    """Writes a network as a file. Raises `UserError`, `StorageFailed`.

    Args:
      source: what `nin_jax.load` returns, or (model, variables, image shape `(H, W, C)`).
      format: one of `FORMATS`.
      path: of the file, which is replaced.
      preprocessing: whether a classifier's file takes images as they are, uint8 `[B, H, W, C]`, and preprocesses them. Without,
        and of a model with variables, it takes float32 that are preprocessed already.
      maps: names of the maps that "onnx" and "stablehlo" give besides the logits, such as "class_maps".

    Returns:
      the path.
    """
    if format not in FORMATS:
        raise UserError(f"format={format!r}: {nearest(format, FORMATS)}")
    network = Network.of(source)
    content = FORMATS[format](network if preprocessing else network.without_preprocessing(), maps)
    path = expanded(path)
    if not path.parent.is_dir():
        raise UserError(f"path={str(path)!r}: there is no folder {path.parent}")
    write_whole(path, content)
    return path
