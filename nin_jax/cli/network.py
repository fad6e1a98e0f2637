"""Which trained network a command is about, --model=NAME or --run=DIR; and the pictures of --maps=DIR."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import nin_jax
from nin_jax import registry
from nin_jax.arguments import Parser
from nin_jax.errors import StorageFailed, UserError, one_line
from nin_jax.storage import expanded

if TYPE_CHECKING:
    from PIL import Image

    from nin_jax.training.predict import Classifier


def add_flags(parser: Parser) -> None:
    """Adds the two flags to a command."""
    parser.add_argument(
        "--model", metavar="NAME", help="a trained network, see nin-jax list; or what nin_jax.load takes"
    )
    parser.add_argument("--run", metavar="DIR", help="or a run directory, the --workdir of nin-jax train")
    parser.add_argument("--trust", action="store_true", help="import the modules of your own that its config names")


def load(given: argparse.Namespace) -> Classifier:
    """The network that one of the flags names, in a process that is set up as a run's is. Raises `UserError`."""
    model, run = given.model, given.run
    if (model is None) == (run is None):
        known = ", ".join(nin_jax.list_pretrained())
        raise UserError(f"one of --model=NAME (valid: {known}) and --run=DIR is expected")
    folder = expanded(run or "").absolute()
    if run is not None and not folder.is_dir():
        raise UserError(f"--run={run}: no such directory; it is the --workdir of a training")

    from nin_jax.data.cache import cache_dir
    from nin_jax.devices.process import prepare_process

    prepare_process(cache_dir() / "xla")
    if given.trust:
        registry.search_working_directory()
    try:
        return nin_jax.load(folder if model is None else model, trust=given.trust)
    except UserError as error:
        raise UserError(f"{f'--run={run}' if model is None else f'--model={model}'}: {error}") from error


def save_picture(picture: Image.Image, folder: Path, stem: str, taken: Collection[Path | None]) -> Path:
    """Writes a picture as STEM.png into the folder of --maps, or as STEM-2.png, ... if that is `taken`; returns the file.

    Raises `UserError`, `StorageFailed`.
    """
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    file = next(file for name in names if (file := folder / f"{name}.png") not in taken)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(file)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"--maps={folder} is not a directory") from error
    except OSError as error:
        raise StorageFailed(f"--maps={folder}: {one_line(error)}") from error
    return file
