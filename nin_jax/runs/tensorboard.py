"""TensorBoard's event file."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nin_jax.console import say
from nin_jax.errors import one_line


@contextlib.contextmanager
def _without_pytorch() -> Iterator[None]:
    """For an import of tensorboardX, which looks for PyTorch: where it is installed and not in use, that takes seconds."""
    if not sys.modules.keys().isdisjoint({"torch", "tensorboardX"}):
        yield
        return
    modules: dict[str, Any] = sys.modules
    modules["torch"] = None  # there is none, for an import
    try:
        yield
    finally:
        del modules["torch"]
        for name in [name for name in modules if name.partition(".")[0] == "tensorboardX"]:
            del modules[name]  # others get one that knows PyTorch


class TensorBoard:
    """TensorBoard's event file: the numbers of each row as SPLIT/NAME. Its errors cost a line, never a run.

    Args:
      folder: its place.
      purge_step: rows that an interrupted start wrote from this step on are hidden.
    """

    def __init__(self, folder: Path, purge_step: int):
        with _without_pytorch():
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto import event_pb2, summary_pb2

        messages: Any = vars(event_pb2) | vars(summary_pb2)  # made at import time, so that pyright sees none
        self.Event, self.Summary = messages["Event"], messages["Summary"]
        self.file: Any = None
        try:
            folder.mkdir(exist_ok=True)
            # Not the usual SummaryWriter, which writes minutes later in a thread, and dies there if the disk is full.
            self.file = EventsWriter(str(folder / "events"))
            start = messages["SessionLog"](status=messages["SessionLog"].START)
            self.file.write_event(self.Event(wall_time=time.time(), step=purge_step, session_log=start))
        except OSError as error:
            self._give_up(error)

    def write(self, row: dict[str, Any]) -> None:
        """Adds the numbers of a row."""
        if self.file:
            names = [name for name in row if name not in ("step", "split", "epoch")]
            values = [self.Summary.Value(tag=f"{row['split']}/{name}", simple_value=row[name]) for name in names]
            event = self.Event(wall_time=time.time(), step=row["step"], summary=self.Summary(value=values))
            try:
                self.file.write_event(event)
                self.file.flush()
            except OSError as error:
                self._give_up(error)

    def close(self) -> None:
        """Closes the file."""
        if self.file:
            with contextlib.suppress(OSError):
                self.file.close()
        self.file = None

    def _give_up(self, error: OSError) -> None:
        self.close()
        say(f"tensorboard/ gets no more rows: {one_line(error)}")
