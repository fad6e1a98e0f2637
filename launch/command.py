"""What the launchers' command lines share: own flags before --, those of `nin_jax.main` after it; one line for a mistake."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from absl import flags

from nin_jax.console import fail
from nin_jax.errors import ExitError, StorageFailed, UserError, one_line


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


def run(launch: Callable[[Sequence[str]], int]) -> None:
    """Runs a launcher on this process's command line and leaves with its exit code."""
    try:
        code = launch(sys.argv[1:])
    except ExitError as ending:
        fail(str(ending))
        code = ending.exit_code
    except OSError as error:
        fail(one_line(error))
        code = StorageFailed.exit_code
    raise SystemExit(code)
