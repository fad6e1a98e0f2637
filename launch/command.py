"""What the launchers' command lines share: own flags before --, those of `nin_jax.main` after it; one line for a user error."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from nin_jax import main
from nin_jax.console import exiting
from nin_jax.errors import StorageFailed, UserError, one_line

FINAL = (2, 70, 74)  # exit codes of a run that would end in the same way if it were started again


def parse(values: flags.FlagValues, argv: Sequence[str], doc: str | None) -> list[str]:
    """Sets the flags from the words before --, and returns those after it. Raises `UserError`."""
    words = list(argv)
    middle = words.index("--") if "--" in words else len(words)
    own, rest = words[:middle], words[middle + 1 :]
    if any(word.lstrip("-") in ("help", "h") for word in own):
        print(f"{doc}\n{values.get_help()}")
        raise SystemExit(0)
    for name in values:
        values[name].unparse()
    try:
        left = values(["launch", *own])
    except flags.Error as error:
        hint = "" if "--" in words else "; flags of nin_jax.main come after --"
        raise UserError(one_line(error) + hint) from error
    if len(left) > 1:
        raise UserError(
            f"argument {left[1]!r}: flags of nin_jax.main come after --, as in `-- --config=experiments/NAME.py`"
        )
    return rest


def parse_run(values: flags.FlagValues, argv: Sequence[str], doc: str | None) -> tuple[list[str], Path]:
    """As `parse` for a launcher of one run: the words of `nin_jax.main`, checked here, and its run directory."""
    rest = parse(values, argv, doc)
    return rest, main.parse(["nin_jax", *rest]).workdir


def tool(line: Sequence[str], otherwise: str, **options: Any) -> subprocess.CompletedProcess:
    """Runs a program. Raises `UserError`, which says what to do `otherwise`, where this machine does not have it."""
    try:
        return subprocess.run(list(line), **options)
    except FileNotFoundError as error:
        raise UserError(f"{line[0]} is not on this machine; {otherwise}") from error


def run(launch: Callable[[Sequence[str]], int]) -> None:
    """Runs a launcher on this process's command line and leaves with its exit code."""
    with exiting():
        try:
            code = launch(sys.argv[1:])
        except OSError as error:
            raise StorageFailed(one_line(error)) from error
    raise SystemExit(code)
