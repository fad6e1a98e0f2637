"""Seconds spent on each part of a run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Clock:
    """Seconds spent on each part of a run ("train", "compile", "eval"), over all its starts."""

    def __init__(self, seconds: dict[str, float]):
        self.seconds = dict(seconds)

    @contextlib.contextmanager
    def time(self, part: str) -> Iterator[None]:
        """Adds the time inside to `part`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start
