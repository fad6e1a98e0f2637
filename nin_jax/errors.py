"""The ways a command can fail, and the exit code of each (docs/runs.md)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ExitError(Exception):
    """A known ending: `main` prints its message as one line on stderr and exits with `exit_code`."""

    exit_code: int


class UserError(ExitError):
    """The user's mistake: the message names the argument, the value and the nearest valid choice."""

    exit_code = 2


class Diverged(ExitError):
    """The network is lost at `update`: the loss is not finite, or for many updates all images have had equal logits."""

    exit_code = 70

    def __init__(self, message: str, update: int | None = None):
        super().__init__(message)
        self.update = update


class StorageFailed(ExitError):
    """The run directory cannot be written or read; what was written before is still there."""

    exit_code = 74


class Preempted(ExitError):
    """Asked to stop from outside (SIGTERM, SIGINT): the same command, started again, resumes."""

    exit_code = 75


def out_of_memory(error: BaseException) -> bool:
    """Whether the host or a device ran out of memory, which says nothing about the files and arguments involved."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def nearest(word: str, choices: Iterable[str]) -> str:
    """The end of an error message: the nearest of `choices`, and all of them when they are few.

    >>> nearest("cifar", ["cifar10", "mnist"])
    "did you mean 'cifar10'? (valid: cifar10, mnist)"
    """
    choices = sorted(choices)
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    listed = f"(valid: {', '.join(choices)})" if len(choices) <= 30 else f"({len(choices)} valid names)"
    return hint + listed


def one_line(error: BaseException) -> str:
    """An error as one line of text."""
    return " ".join(str(error).split()) or type(error).__name__
