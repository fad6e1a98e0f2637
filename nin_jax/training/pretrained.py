"""The trained networks that come with the package, MODEL.TAG each: a folder of weights/pretrained, its checksum in SHA256SUMS.

`nin_jax.weights.publish` writes both; `sha256sum -c SHA256SUMS` checks them too.
"""

from __future__ import annotations

import fnmatch
import json
import os
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from nin_jax import config as config_lib
from nin_jax.errors import UserError, nearest, one_line

FOLDER = Path(__file__).parents[1] / "weights" / "pretrained"
SUMS = "SHA256SUMS"
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
HUB = "hf-hub:"


class Source(NamedTuple):
    """A folder with a network, and the SHA-256 of its weights if the package knows it."""

    folder: Path
    sha256: str | None


def checksums(folder: Path = FOLDER) -> dict[str, str]:
    """SHA-256 of each network's weights by name, as a folder of networks lists them."""
    lines = (folder / SUMS).read_text().splitlines() if (folder / SUMS).exists() else []
    return {path.split("/")[0]: digest for digest, path in (line.split() for line in lines)}


def names(filter: str = "*") -> list[str]:
    """Names of the networks that come with the package and match a pattern such as "nin.*", sorted."""
    return sorted(fnmatch.filter(checksums(), filter))


def find(name: str) -> Source | None:
    """The place of a network: by name, in a folder of the layout of `training.safetensors`, or on the Hub; None if there
    is none.

    Args:
      name: "nin.cifar10"; a folder; or "hf-hub:OWNER/NAME[@REVISION]", which is downloaded to huggingface_hub's cache.
    """
    if name in (known := checksums()):
        return Source(FOLDER / name, known[name])
    if name.startswith(HUB):
        return Source(_downloaded(name), None)
    folder = Path(os.path.expanduser(name))
    if not os.path.isfile(folder / WEIGHTS):  # False for names that no file can have, too
        return None
    return Source(folder, known.get(folder.name) if folder.resolve().parent == FOLDER else None)


def find_unless_run(name: str) -> Source | None:
    """The same where `name` may also be a run directory, which comes first: it may be called like a network."""
    return None if os.path.isdir(Path(os.path.expanduser(name)) / "checkpoints") else find(name)


def config(folder: Path) -> ConfigDict:
    """The config of the network in a folder, to compute in float32 whatever it was trained in. Raises `UserError`."""
    try:
        found = config_lib.from_dict(json.loads((folder / CONFIG).read_text())["config"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{folder} is not the folder of a network: {one_line(error)[:300]}") from error
    found.precision = "float32"
    return found


def unknown(name: str) -> UserError:
    """The error for a name that is none."""
    return UserError(f"no trained network {name!r}, and no such folder: {nearest(name, names())}")


def _downloaded(name: str) -> Path:
    """The folder of a repository of the Hub. Raises `UserError`."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UserError(f'{name} needs huggingface_hub: python -m pip install "nin_jax[hub]"') from error
    repository, _, revision = name.removeprefix(HUB).partition("@")
    try:
        files = [WEIGHTS, CONFIG, CARD]
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=files))
    except Exception as error:  # of the network, the Hub, the disk
        raise UserError(
            f"{name} cannot be fetched: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        ) from error
