"""Which trained network a command is about: --model=NAME or --run=DIR."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import nin_jax
from nin_jax import registry
from nin_jax.arguments import Parser
from nin_jax.errors import UserError

if TYPE_CHECKING:
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
    folder = Path(run or "").expanduser().absolute()
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
