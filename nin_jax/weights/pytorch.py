"""A run directory from the weights of a PyTorch network.

    python -m nin_jax.weights.pytorch FILE.pth|FILE.safetensors --config=experiments/NAME.py[:ARG] --workdir=DIR
                                     [--prefix=NAME] [--check=FILE.npz] [--config.KEY=VALUE ...]

DIR becomes a run at step 0, with fitted preprocessing, and the file's name and SHA-256 in source.json: --mode=eval evaluates
it, --mode=train fine-tunes it, `nin_jax.load_run` loads it. --check compares the logits with those in a file (see
`imported.check`). PyTorch need not be installed, and nothing in the file is executed.

The file holds a state dict, alone or under a key such as "state_dict", "model" or "net": "NAME.weight" of convolutions
(out x in x height x width), fully connected layers (out x in) and batch normalisation, "NAME.bias", "NAME.running_mean" and
"NAME.running_var". Where it holds several networks, such as a model and its EMA, --prefix names the one to take.

Layers are matched by the last part of their names ("features.conv1.weight" is conv1), if all of ours are there. Otherwise a
file of torch.save is matched in its own order, in which the network created its layers; every shape must fit. A .safetensors
file keeps no order, so there each layer must be the only one of its shape, or --check must confirm the order of the names. The
mapping is printed.

Where a layer of ours has several filters for each map (maxout, and the unshared layer of convnet), no file says their order:
piece m of map k must be filter m * maps + k, and the filter of map k at row i and column j (i * width + j) * maps + k; --check
must confirm it. A file that nin_jax exported says so itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from nin_jax.console import say
from nin_jax.errors import ExitError, UserError, nearest, one_line
from nin_jax.weights import torch_files
from nin_jax.weights.imported import Options, command
from nin_jax.weights.torch_files import SAVE_WEIGHTS, Call, Tensor

PARTS = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}

OURS = "nin_jax"  # in the metadata of a file that this project wrote

Layer = tuple[str, dict[str, Any]]  # a name, and its tensors or shapes by what PyTorch calls them
Pairs = list[tuple[Layer, Layer]]  # the file's, the network's


def networks(root: Any) -> dict[str, dict[str, Any]]:
    """The state dicts in what a file holds, by the keys that lead there ("" for the whole file). Raises `UserError`."""
    found: dict[str, dict[str, Any]] = {}
    modules: list[str] = []
    seen: set[int] = set()

    def walk(value: Any, keys: tuple[str, ...]) -> None:
        if isinstance(value, Call) and not value.name.startswith("numpy."):
            modules.append(value.name)
        if not isinstance(value, dict) or id(value) in seen or len(keys) > 3:
            return
        seen.add(id(value))
        named = {name: one for name, one in value.items() if isinstance(name, str)}
        if any(isinstance(one, Tensor) and f".{name}".endswith(".weight") for name, one in named.items()):
            found[".".join(keys)] = named
            return
        for name, one in named.items():
            walk(one, (*keys, name))

    walk(root, ())
    if not found and modules:
        raise UserError(f"it holds a whole module ({modules[0]}), which only its own code can rebuild; {SAVE_WEIGHTS}")
    if not found:
        raise UserError(f"it holds no state dict, with names such as 'conv1.weight'; {SAVE_WEIGHTS}")
    return found


def chosen(found: Mapping[str, dict[str, Any]], prefix: str | None) -> dict[str, Any]:
    """The state dict of one network: the only one, or the part below a prefix. Raises `UserError`."""
    if prefix is None:
        if len(found) > 1:
            raise UserError(
                f"it holds several networks: {', '.join(found)}; choose one with --prefix={next(iter(found))}"
            )
        return next(iter(found.values()))
    whole = {f"{keys}.{name}".lstrip("."): value for keys, part in found.items() for name, value in part.items()}
    inner = next(iter(found.values())) if len(found) == 1 else {}
    for state in (whole, inner):
        if below := {name: value for name, value in state.items() if name.startswith(f"{prefix}.")}:
            return below
    raise UserError(f"--prefix={prefix}: no name begins with it: {nearest(prefix, prefixes(whole | inner))}")


def prefixes(names: Mapping[str, Any]) -> list[str]:
    """All that --prefix may be: "a" and "a.b" of "a.b.weight"."""
    parts = [name.split(".") for name in names]
    return list(dict.fromkeys(".".join(part[:i]) for part in parts for i in range(1, len(part) - 1)))


def layers_of_file(state: Mapping[str, Any]) -> list[Layer]:
    """Tensors by layer, in the file's order. Raises `UserError` for numbers that no layer of ours has."""
    layers: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for name, value in state.items():
        layer, _, part = name.rpartition(".")
        floating = isinstance(value, Tensor) and value.dtype.kind not in "iub"
        if part in PARTS.values() and floating:
            layers.setdefault(layer, {})[part] = value
        elif part in PARTS.values() or floating:  # integers count batches, which nothing here needs
            unknown.append(name)
    if unknown:
        raise UserError(f"it has what no layer of ours has: {', '.join(unknown)}")
    return list(layers.items())


def layers_of_network(like: Mapping[str, Any]) -> list[Layer]:
    """(path, shape) of the variables by layer, in the order in which the network creates its layers."""
    layers: dict[tuple[str, ...], dict[str, Any]] = {}
    flat: Any = flatten_dict({kind: like[kind] for kind in ("params", "batch_stats")})
    for path, leaf in flat.items():
        layers.setdefault(path[1:-1], {})[PARTS[path[-1]]] = (path, leaf.shape)
    return [(path[-1], parts) for path, parts in layers.items()]


def match(theirs: Sequence[Layer], mine: Sequence[Layer], *, ordered: bool, checked: bool) -> Pairs:
    """Pairs of layers: by name where all names are there, else by order, else by shape. Raises `UserError`.

    Args:
      theirs, mine: the file's layers, and the network's.
      ordered: whether the file's layers are in the order in which they were created.
      checked: whether the logits will be compared, so that the order may be guessed.
    """
    if len(theirs) != len(mine):
        raise UserError(
            f"it has {len(theirs)} layers ({', '.join(name for name, _ in theirs)}), and the network {len(mine)} "
            f"({', '.join(name for name, _ in mine)}){_fitting_prefixes(theirs, len(mine))}"
        )
    by_name = {name.rpartition(".")[2]: (name, parts) for name, parts in theirs}
    if all(name in by_name for name, _ in mine):
        return [(by_name[name], (name, parts)) for name, parts in mine]
    if ordered:
        return list(zip(theirs, mine, strict=True))
    theirs = sorted(theirs, key=lambda one: [int(w) if w.isdigit() else w for w in re.split(r"(\d+)", one[0])])
    fitting = [[one for one in theirs if _fits(one[1], parts)] for _, parts in mine]
    for (name, _), several in zip(mine, fitting, strict=True):
        if not several:
            shown = ", ".join(f"{name} {parts['weight'].shape}" for name, parts in theirs if "weight" in parts)
            raise UserError(f"it has no layer of the shape of {name}; it has {shown}")
    if not checked and any(len(several) > 1 for several in fitting):
        shown = ", ".join(
            f"{' or '.join(one for one, _ in f)} -> {name}" for (name, _), f in zip(mine, fitting, strict=True)
        )
        raise UserError(
            f"a .safetensors file does not keep the order of its layers, and several have the same shape: {shown}; name them as "
            "ours, or save them with torch.save, or add --check=FILE.npz with images and their logits"
        )
    pairs: Pairs = []
    for one, several in zip(mine, fitting, strict=True):
        taken = [name for (name, _), _ in pairs]
        pairs.append((next((other for other in several if other[0] not in taken), several[0]), one))
    return pairs


def _fitting_prefixes(theirs: Sequence[Layer], count: int) -> str:
    names = {f"{name}.weight": None for name, _ in theirs}
    fitting = [p for p in prefixes(names) if sum(name.startswith(f"{p}.") for name in names) == count]
    return f"; choose one of its networks with {' or '.join(f'--prefix={p}' for p in fitting)}" if fitting else ""


def _fits(tensors: Mapping[str, Tensor], parts: Mapping[str, Any]) -> bool:
    """Whether a layer of a file has the shapes of one of the network's."""

    def fits(theirs: tuple[int, ...], ours: tuple[int, ...]) -> bool:
        same = math.prod(theirs) == math.prod(ours)
        return same and convert(np.broadcast_to(np.float32(0), theirs), ours, 1) is not None

    return tensors.keys() == parts.keys() and all(fits(tensors[k].shape, shape) for k, (_, shape) in parts.items())


def convert(value: np.ndarray, shape: tuple[int, ...], channels: int) -> np.ndarray | None:
    """A PyTorch array in our layout; None if it does not fit `shape`.

    Args:
      value: a kernel out x in x height x width becomes `[height, width, in, out]`, a matrix out x in `[in, out]` or a 1x1
        kernel; others stay.
      shape: ours.
      channels: of the maps before. The rows of a matrix on flattened maps go by channel, row and column there, and by
        row, column and channel here.
    """
    if value.ndim == 4 and len(shape) == 4:
        value = value.transpose(2, 3, 1, 0)
    elif value.ndim == 2 and len(shape) == 4:
        value = value.T[None, None]
    elif len(shape) == 2 and value.ndim in (2, 4):
        value = value.reshape(len(value), -1)
        if value.shape[1] % channels:
            return None
        value = value.reshape(len(value), channels, -1).transpose(2, 1, 0).reshape(-1, len(value))
    return np.ascontiguousarray(value, np.float32) if value.shape == shape else None


def convert_back(value: np.ndarray, channels: int) -> np.ndarray:
    """An array of ours in PyTorch's layout, which `convert` gives back."""
    if value.ndim == 4:
        value = value.transpose(3, 2, 0, 1)
    elif value.ndim == 2:
        value = value.reshape(-1, channels, value.shape[1]).transpose(2, 1, 0).reshape(value.shape[1], -1)
    return np.ascontiguousarray(value)


def channels_before(layers: Sequence[Layer], maps: Mapping[str, Any]) -> Iterator[int]:
    """For each of the network's layers, the channels of the maps, or the units, that it sees; 1 for the first."""
    channels = 1
    for name, parts in layers:
        kernel = parts["weight"][1]
        if len(kernel) == 2:
            channels = min(channels, kernel[0])  # less after a dense maxout layer
        yield channels
        if len(kernel) > 1:
            channels = maps[name].shape[-1] if name in maps else kernel[-1]


def to_variables(pairs: Pairs, maps: Mapping[str, Any], *, checked: bool) -> Any:
    """Variables of the network from pairs of layers. Raises `UserError`.

    Args:
      pairs: from `match`.
      maps: shapes of the network's maps, by name.
      checked: whether the logits will be compared, so that the order of the filters of one map may be guessed.
    """
    flat, before, outputs = {}, ("", ""), 0
    for ((theirs, tensors), (mine, parts)), channels in zip(
        pairs, channels_before([mine for _, mine in pairs], maps), strict=True
    ):
        if tensors.keys() != parts.keys():
            raise UserError(
                f"layer {theirs!r}, matched with {mine!r}, has {_listed(tensors)}, and ours {_listed(parts)}"
            )
        kernel = parts["weight"][1]
        if len(kernel) == 2 and channels < outputs:  # after a dense maxout layer
            _check_order(before, outputs, f"{channels} units", checked)
        for part, (path, shape) in parts.items():
            value = tensors[part].read()
            converted = convert(value, shape, channels)
            if converted is None:
                raise UserError(f"layer {theirs!r}, matched with {mine!r}: {part} is {value.shape}, ours {shape}")
            if not np.isfinite(converted).all():
                raise UserError(f"layer {theirs!r}: {part} has numbers that are not finite")
            flat[path] = converted
        if len(kernel) > 1:
            before, outputs = (theirs, mine), maps[mine].shape[-1] if mine in maps else kernel[-1]
            if outputs != kernel[-1]:
                _check_order(before, kernel[-1], f"{outputs} maps", checked)
    return {"params": {}, "batch_stats": {}} | unflatten_dict(flat)


def _check_order(layer: tuple[str, str], filters: int, outputs: str, checked: bool) -> None:
    if not checked:
        raise UserError(
            f"layer {layer[0]!r}, matched with {layer[1]!r}, has {filters} filters for {outputs}, and the file does not say "
            "their order; put them into ours (see --help), and add --check=FILE.npz with images and their logits"
        )


def _listed(parts: Mapping[str, Any]) -> str:
    return ", ".join(sorted(parts))


def read(file: Path, like: dict[str, Any], options: Options) -> dict[str, Any]:
    """Variables shaped `like` from a file. Raises `UserError`."""
    try:
        root, ordered = torch_files.read(file)
        theirs = layers_of_file(chosen(networks(root), options.get("prefix")))
        checked = "check" in options or (not ordered and torch_files.metadata(file).get(OURS) == "1")
        pairs = match(theirs, layers_of_network(like), ordered=ordered, checked=checked)
        variables = to_variables(pairs, like["maps"], checked=checked)
    except ExitError as error:
        raise UserError(f"{file} does not fit: {one_line(error)}") from error
    except Exception as error:  # a damaged file can raise anything
        raise UserError(f"{file} is not a file of weights, or is damaged: {one_line(error)}") from error
    say(", ".join(f"{theirs} -> {mine}" for (theirs, _), (mine, _) in pairs))
    return variables


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line above; ends the process with the exit code of `nin_jax.main`'s contract."""
    command(read, "the .pth or .safetensors file", __doc__, argv, ("prefix",))


if __name__ == "__main__":
    main()
