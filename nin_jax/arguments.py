"""Command lines of a few flags: argparse, except that a mistake on them is a `UserError`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from nin_jax.errors import UserError, nearest


class Parser(argparse.ArgumentParser):
    """Flags and arguments of one command.

    Args:
      command: what a user types, such as "nin-jax predict".
      doc: the help; a module's docstring.
    """

    def __init__(self, command: str, doc: str | None):
        form = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=command, description=doc, formatter_class=form, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raises `UserError`, where argparse prints the usage and exits."""
        raise UserError(f"{self.prog}: {message}; {self.prog} --help shows the whole command")

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """What the words say. Raises `UserError`, with the nearest valid flag for an unknown one."""
        found, left = self.parse_known_args(argv)
        for word in left:
            if not word.startswith("-"):
                self.error(f"argument {word!r} is one too many")
            flags = (flag for flag in self._option_string_actions if flag.startswith("--"))
            raise UserError(f"{self.prog}: unknown flag {word}: {nearest(word.split('=')[0], flags)}")
        return found
