"""A run directory from the weights of a PyTorch network.

    python -m nin_jax.weights.pytorch FILE.safetensors|FILE.pth --config=experiments/NAME.py[:ARG] --workdir=DIR
                                     [--config.KEY=VALUE ...]

DIR is then a run at step 0, with the preprocessing fitted and the file's name and SHA-256 in source.json: --mode=eval
evaluates it, --mode=train goes on from it, `nin_jax.load_run` loads it.

A file holds a state dict: "NAME.weight" of convolutions (out x in x height x width), fully connected layers (out x in)
and batch normalisation, "NAME.bias", "NAME.running_mean" and "NAME.running_var". Layers are matched by name, whatever
stands before its last dot ("features.conv1.weight" is that of conv1). Where no name fits, as in an nn.Sequential, they are matched
by their order, and the order must fit in every shape. Which became which is printed.

.safetensors files are read without PyTorch; any other is given to `torch.load` with weights_only=True, which executes
nothing in it, and needs PyTorch to be installed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from nin_jax.console import say
from nin_jax.errors import ExitError, UserError, one_line
from nin_jax.weights.imported import command

PARTS = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}

Layer = tuple[str, dict[str, Any]]  # a name, and its arrays or shapes by what PyTorch calls them


def tensors(file: Path) -> dict[str, np.ndarray]:
    """The float32 arrays of a file, in its order. Raises `UserError`."""
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    try:
        if file.suffix == ".safetensors":
            from safetensors.numpy import load_file

            found: Mapping[str, Any] = load_file(file)
        else:
            try:
                import torch
            except ImportError as error:
                raise UserError(
                    f"{file}: only .safetensors files can be read without PyTorch; install torch"
                ) from error
            found = torch.load(file, map_location="cpu", weights_only=True)
            if isinstance(found.get("state_dict"), Mapping):  # what training scripts save: weights among other things
                found = found["state_dict"]
            found = {name: value.float().numpy() for name, value in found.items() if isinstance(value, torch.Tensor)}
    except ExitError:
        raise
    except Exception as error:  # both readers raise anything on a damaged file
        raise UserError(f"{file} is no file of weights, or damaged: {one_line(error)[:300]}") from error
    return {name: np.asarray(value, np.float32) for name, value in found.items() if np.size(value)}


def layers_of_file(found: Mapping[str, np.ndarray]) -> list[Layer]:
    """Arrays by layer, in the order of their names with numbers as numbers ("classifier.10" after "classifier.2")."""
    layers: dict[str, dict[str, np.ndarray]] = {}
    for name, value in found.items():
        layer, _, part = name.rpartition(".")
        if part in PARTS.values():
            layers.setdefault(layer, {})[part] = value
    return sorted(layers.items(), key=lambda item: [int(w) if w.isdigit() else w for w in re.split(r"(\d+)", item[0])])


def layers_of_network(like: Mapping[str, Any]) -> list[Layer]:
    """(path, shape) of the variables by layer, in the order in which the network makes its layers."""
    layers: dict[tuple[str, ...], dict[str, Any]] = {}
    for path, leaf in flatten_dict(like).items():
        layers.setdefault(path[1:-1], {})[PARTS[path[-1]]] = (path, leaf)
    return [(path[-1], parts) for path, parts in layers.items()]


def match(theirs: Sequence[Layer], mine: Sequence[Layer]) -> list[tuple[Layer, Layer]]:
    """Pairs of layers (the file's, the network's), by name where all names are there, else by order. Raises `UserError`."""
    by_name = {name.rpartition(".")[2]: (name, parts) for name, parts in theirs}
    if all(name in by_name for name, _ in mine):
        return [(by_name[name], (name, parts)) for name, parts in mine]
    if len(theirs) != len(mine):
        raise UserError(
            f"it has {len(theirs)} layers ({', '.join(name for name, _ in theirs)[:300]}), and the network "
            f"{len(mine)} ({', '.join(name for name, _ in mine)[:300]})"
        )
    return list(zip(theirs, mine, strict=True))


def convert(value: np.ndarray, shape: tuple[int, ...], maps: int) -> np.ndarray | None:
    """A PyTorch array in our layout; None if it has not the numbers for `shape`.

    Args:
      value: a kernel out x in x height x width becomes `[height, width, in, out]`, a matrix out x in `[in, out]` or a 1x1
        kernel; others stay.
      shape: ours.
      maps: of the layer before. The rows of a matrix on flattened maps go by maps, rows and columns there, and by rows,
        columns and maps here.
    """
    if value.ndim == 4 and len(shape) == 4:
        value = value.transpose(2, 3, 1, 0)
    elif value.ndim == 2 and len(shape) == 4:
        value = value.T[None, None]
    elif len(shape) == 2 and value.ndim in (2, 4):
        value = value.reshape(len(value), -1)
        if value.shape[::-1] == shape and shape[0] % maps == 0:
            value = value.reshape(len(value), maps, -1).transpose(2, 1, 0).reshape(-1, len(value))
    return np.ascontiguousarray(value) if value.shape == shape else None


def to_variables(found: Mapping[str, np.ndarray], like: Mapping[str, Any]) -> Any:
    """Variables shaped `like` from a state dict. Raises `UserError`."""
    flat, pairs, maps = {}, [], 1
    for (theirs, arrays), (mine, parts) in match(layers_of_file(found), layers_of_network(like)):
        pairs.append(f"{theirs} -> {mine}")
        for part, (path, leaf) in parts.items():
            if part not in arrays:
                raise UserError(f"layer {theirs!r}, matched with {mine!r}, has no {part}")
            value = convert(arrays[part], leaf.shape, maps)
            if value is None:
                raise UserError(
                    f"layer {theirs!r}, matched with {mine!r}: {part} is {arrays[part].shape}, ours {leaf.shape}"
                )
            if not np.isfinite(value).all():
                raise UserError(f"layer {theirs!r}: {part} has numbers that are not finite")
            flat[path] = value
        unused = arrays.keys() - parts.keys()
        if unused:
            raise UserError(f"layer {theirs!r}, matched with {mine!r}, also has {', '.join(sorted(unused))}")
        if len(parts["weight"][1].shape) > 1:
            maps = parts["weight"][1].shape[-1]
    say(", ".join(pairs))
    return {"params": {}, "batch_stats": {}} | unflatten_dict(flat)


def read(file: Path, like: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Variables shaped `like`, and the "file", "bytes" and "sha256" that they come from. Raises `UserError`."""
    found = tensors(file)
    try:
        variables = to_variables(found, like)
    except UserError as mistake:
        raise UserError(f"{file} does not fit: {mistake}") from mistake
    content = file.read_bytes()
    return variables, {"file": file.name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line above; ends the process with the exit code of `nin_jax.main`'s contract."""
    command(read, "the .safetensors or .pth file", __doc__, argv)


if __name__ == "__main__":
    main()
