"""The command `nin-jax`: each of its words is an entry point of a module, which is imported only when it is asked for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from nin_jax import __version__
from nin_jax.console import exiting
from nin_jax.errors import StorageFailed, UserError, nearest, one_line


class Entry(NamedTuple):
    """A word of `nin-jax`: MODULE:FUNCTION, which reads sys.argv; a line of help; the words before the user's."""

    function: str
    help: str
    before: tuple[str, ...] = ()


COMMANDS = {
    "list": Entry("nin_jax.cli.list:main", "trained networks, models, experiments and data sets"),
    "predict": Entry("nin_jax.cli.predict:main", "names what is in images, and shows where the evidence lies"),
    "train": Entry("nin_jax.main:main", "trains the network of a config, or resumes its run", ("--mode=train",)),
    "eval": Entry(
        "nin_jax.main:main", "evaluates the newest checkpoint of a run, or a trained network", ("--mode=eval",)
    ),
    "describe": Entry(
        "nin_jax.main:main", "parameters, feature maps, FLOPs and memory of a config", ("--mode=describe",)
    ),
    "page": Entry("nin_jax.cli.page:main", "one HTML file that classifies images offline, in any browser"),
    "board": Entry("nin_jax.page.board:main", "a page of runs on this machine: live curves, comparison, mistakes"),
    "export": Entry("nin_jax.cli.export:main", "a trained network as ONNX, StableHLO, safetensors or for PyTorch"),
    "prepare": Entry(
        "nin_jax.data.prepare.__main__:run", "downloads a data set, or takes its archives, and prepares it"
    ),
    "tables": Entry("nin_jax.paper.tables:main", "writes the tables of recorded runs into the pages of a checkout"),
}


def main() -> None:
    """Runs the command line of this process and ends it with the exit code of the contract."""
    with exiting():
        try:
            entry(sys.argv[1:])()
        except OSError as error:
            raise StorageFailed(one_line(error)) from error


def entry(words: Sequence[str]) -> Callable[[], object]:
    """The function that a command line asks for, with sys.argv set for it. Raises `UserError` for a word that is none."""
    valid = f"(valid: {', '.join(COMMANDS)}; nin-jax --help)"
    if not words:
        raise UserError(f"a command is expected {valid}")
    name, *rest = words
    if name in ("-h", "--help", "help"):
        return lambda: print(usage())
    if name == "--version":
        return lambda: print(f"nin_jax {__version__}")
    if name not in COMMANDS:
        raise UserError(f"unknown command {name!r}: {nearest(name, COMMANDS)}")
    found = COMMANDS[name]
    if found.before and any(word.lstrip("-").split("=")[0] == "mode" for word in rest):
        raise UserError(f"--mode: `nin-jax {name}` sets it; leave the flag out")
    if found.before and rest and not rest[0].startswith("-"):  # `nin-jax train digits`
        rest[0] = f"--config={rest[0]}"
    sys.argv = [f"nin-jax {name}", *found.before, *rest]
    module, _, function = found.function.partition(":")
    return getattr(importlib.import_module(module), function)


def usage() -> str:
    """The help: a line for each command."""
    width = max(map(len, COMMANDS))
    lines = (f"  {name.ljust(width)}  {entry.help}" for name, entry in COMMANDS.items())
    return "\n".join(["nin-jax COMMAND ... (each with --help)", "", *lines])


if __name__ == "__main__":
    main()
