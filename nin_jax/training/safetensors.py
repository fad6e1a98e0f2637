"""Trained networks as folders in the layout of the Hugging Face Hub: one self-describing file of weights, and its card.

    DIR/model.safetensors   weights, preprocessing, and metadata
    DIR/config.json         the metadata again, and the SHA-256 of that file, without which it is not loaded
    DIR/README.md           the model card

Tensors are named by their path: "params/mlpconv1/conv1/kernel" (HWIO), "batch_stats/mlpconv1/conv1_norm/mean", and
"preprocess/0/mean", fitted for the first op of `config.preprocess`. Kernels are float16, all else is float32.
A whitening matrix is symmetric: "preprocess/1/matrix:upper" holds its upper triangle, row by row, in float16.

The header's `__metadata__` has one JSON object (`FACTS`) under "nin_jax". Nothing in a folder is executed or unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict
from safetensors import SafetensorError

from nin_jax import config as config_lib
from nin_jax import registry
from nin_jax.data import splits
from nin_jax.errors import UserError, one_line
from nin_jax.training.predict import Classifier
from nin_jax.training.pretrained import CONFIG, WEIGHTS
from nin_jax.training.state import init_variables

UPPER = ":upper"
LARGE = 1_000_000  # bytes; only a whitening matrix is larger

# What every file says: the network's name; its config; the notes of `data.splits.to_notes` on its data set; and what
# was measured of this very file: error in per cent and mean loss over all examples of a split.
FACTS = ("name", "config", "dataset", "error_pct", "loss", "examples", "split")


def pack(
    variables: Mapping[str, Any], stats: list[dict[str, Any]], *, whitening: bool = False
) -> dict[str, np.ndarray]:
    """The tensors of a file. Raises `UserError` for a whitening matrix unless `whitening` asks for it, and for what overflows."""
    flat: Any = flatten_dict({key: variables.get(key, {}) for key in ("params", "batch_stats")}, sep="/")
    with np.errstate(over="ignore"):  # said below
        tensors = {
            path: np.asarray(p, np.float16 if path.endswith("/kernel") else np.float32) for path, p in flat.items()
        }
    for i, learned in enumerate(stats):
        for name, value in learned.items():
            path, array = f"preprocess/{i}/{name}", np.asarray(value, np.float32)
            if array.nbytes > LARGE:
                if not whitening:
                    raise UserError(
                        f"{path} has {array.nbytes / 1e6:.1f} MB, more than the network; --whitening writes "
                        f"{array.nbytes / 4e6:.1f} MB, or train with preprocess=(\"mean(per='channel')\", 'scale()')"
                    )
                square = array.reshape(len(array), -1)
                if not np.array_equal(square, square.T):
                    raise UserError(f"{path} {list(array.shape)} is no symmetric matrix, and too large")
                path, array = path + UPPER, square[np.triu_indices(len(square))].astype(np.float16)
            tensors[path] = array
    if bad := [path for path, array in tensors.items() if not np.isfinite(array).all()]:
        raise UserError(f"{bad[0]} has numbers that are not finite, or too large for float16")
    return tensors


def unpack(tensors: Mapping[str, np.ndarray], ops: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Variables and fitted preprocessing, float32, from the tensors of a file.

    Raises ValueError for any other tensor.
    """
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    stats: list[dict[str, Any]] = [{} for _ in range(ops)]
    flat: dict[tuple[str, ...], np.ndarray] = {}
    for name, tensor in tensors.items():
        array, path = tensor.astype(np.float32), tuple(name.split("/"))
        if not np.isfinite(array).all():
            raise ValueError(f"{name} has numbers that are not finite")
        if path[0] in variables:
            flat[path] = array
            continue
        kind, number, part = path
        if kind != "preprocess" or not 0 <= int(number) < ops:
            raise ValueError(f"{name} belongs to nothing")
        if part.endswith(UPPER):
            side = int((2 * array.size + 0.25) ** 0.5)
            full = np.zeros((side, side), np.float32)
            full[np.triu_indices(side)] = array
            array, part = full + np.triu(full, 1).T, part.removesuffix(UPPER)
        stats[int(number)][part] = array
    return variables | unflatten_dict(flat), stats


def encode(tensors: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> bytes:
    """The content of a file."""
    return safetensors.numpy.save(dict(tensors), {"format": "flax", "nin_jax": json.dumps(facts, sort_keys=True)})


def tensors_of(content: bytes) -> dict[str, np.ndarray]:
    """The tensors in the content of a file, as they are stored."""
    return safetensors.numpy.load(content)


def refuse_modules(config: ConfigDict, what: str) -> None:
    """Raises `UserError` if an unchecked config, which comes from `what`, names modules outside the zoo."""
    if outside := config_lib.modules(config):
        raise UserError(
            f"{what} names modules outside the zoo ({', '.join(outside)}), which loading would execute; "
            "if you know them: load(DIR, trust=True), or --trust"
        )


def decode(content: bytes, what: str, *, trust: bool = False) -> Classifier:
    """The network in the content of a file, computing in float32 whatever it was trained in. Raises `UserError`.

    Args:
      content: of the file.
      what: its name, for the messages.
      trust: whether modules outside the zoo that its config names may be imported.
    """
    try:
        tensors = tensors_of(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        facts = json.loads(header["__metadata__"]["nin_jax"])
        if lacking := [name for name in FACTS if name not in facts]:
            raise ValueError(f"its metadata has no {', no '.join(lacking)}")
        config = config_lib.from_dict(facts["config"])
        config.precision = "float32"
        info = splits.from_notes(facts["dataset"])
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{what} is not the file of a network: {one_line(error)[:300]}") from error
    if not trust:
        refuse_modules(config, what)
    checked = config_lib.check(config)
    try:
        model = registry.create(checked.model.name, info.classes, **checked.model.arguments)
        variables, stats = unpack(tensors, len(checked.preprocess))
        match(variables, jax.eval_shape(lambda: init_variables(model, 0, info.image_shape)))
    except (ValueError, TypeError) as error:
        raise UserError(f"{what} does not hold the network of its config: {one_line(error)[:300]}") from error
    return Classifier(checked, info, model, variables, stats, metadata=facts)


def match(variables: Mapping[str, Any], wanted: Any) -> None:
    """Raises ValueError unless variables have the paths and shapes of those of their config."""
    trees: Any = flatten_dict(dict(variables)), flatten_dict(dict(wanted))
    here, there = ({path: array.shape for path, array in tree.items()} for tree in trees)
    for path in sorted(here.keys() | there.keys()):
        if here.get(path) != there.get(path):
            raise ValueError(f"{'/'.join(path)} has the shape {here.get(path)}, its config says {there.get(path)}")


def read(folder: Path, sha256: str | None = None, *, trust: bool = False) -> Classifier:
    """The network in a folder. Raises `UserError`, also if the SHA-256 of the weights is not the expected one.

    Args:
      folder: with `WEIGHTS` and `CONFIG`.
      sha256: of the weights; None: that in `CONFIG`.
      trust: see `decode`.
    """
    path = folder / WEIGHTS
    try:
        if sha256 is None:
            sha256 = json.loads((folder / CONFIG).read_text())["sha256"]
        content = path.read_bytes()
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(f"{folder} is not the folder of a network: {one_line(error)[:300]}") from error
    if (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise UserError(f"{path} is damaged: its SHA-256 is {found}, expected {sha256}")
    return decode(content, str(path), trust=trust)
