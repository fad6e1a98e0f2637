"""A stderr that says it is a terminal."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator

import pytest

from nin_jax import console


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def text(self) -> str:
        """What was written, without its control sequences."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.getvalue()).replace("\r", "\n")


@contextlib.contextmanager
def terminal() -> Iterator[Terminal]:
    """While it is entered, stderr is one. No fixture: pytest would put its own stderr back before the test."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(Terminal()) as stream:
        patch.setenv("TERM", "xterm")
        patch.setattr(console.console, "is_interactive", True)  # which rich asks at the start of the process
        yield stream
