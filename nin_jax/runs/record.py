"""The record of a run: metrics.jsonl, a row for each (step, split); at its end the same rows as metrics.csv."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import io
import json
import os
from pathlib import Path
from typing import Any

from nin_jax import storage
from nin_jax.console import say
from nin_jax.devices import processes
from nin_jax.errors import StorageFailed
from nin_jax.runs.tensorboard import TensorBoard


class Record:
    """metrics.jsonl, with one row for each (step, split), once, whatever interrupts the run; and TensorBoard.

    Opening it for a run that goes on from `step` drops the rows after that step (they will come again) and a half
    last line. Rows are on disk before `write` returns. With several processes all have to call the same methods; the
    first one alone reads and writes.

    Attributes:
      done: the (step, split) of every row.
    """

    def __init__(self, workdir: Path, step: int):
        self.path, self.step = workdir / "metrics.jsonl", step
        self.tensorboard: TensorBoard | None = None
        self.done = {(step, split) for step, split in processes.from_first(self._open)}

    def _open(self) -> list[tuple[int, str]]:
        kept: dict[tuple[int, str], str] = {}
        for line in self.path.read_text(errors="replace").splitlines() if self.path.exists() else ():
            try:
                row = json.loads(line)
                key = (row["step"], row["split"])
                in_time = key[0] <= self.step and key not in kept
            except (ValueError, KeyError, TypeError, RecursionError):
                say(f"{self.path}: dropped an unreadable line")
                continue
            if in_time:
                kept[key] = line + "\n"
        storage.write_whole(self.path, "".join(kept.values()))
        self.file = storage.persist(str(self.path), lambda: open(self.path, "a"))  # noqa: SIM115 - for the whole run
        return list(kept)

    def write(self, row: dict[str, Any]) -> bool:
        """Adds a row, also to TensorBoard, unless it is there; returns whether it did."""
        if new := (key := (row["step"], row["split"])) not in self.done:
            processes.from_first(lambda: self._write(row))
            self.done.add(key)
        return new

    def _write(self, row: dict[str, Any]) -> None:
        self._check()
        self.file.write(json.dumps(row) + "\n")

        def flush() -> None:  # an unwritten rest stays in the file's buffer for the next attempt
            self.file.flush()
            os.fsync(self.file.fileno())

        storage.persist(str(self.path), flush)
        if self.tensorboard is None and importlib.util.find_spec("tensorboardX"):
            self.tensorboard = TensorBoard(self.path.parent / "tensorboard", self.step + 1)
        if self.tensorboard:
            self.tensorboard.write(row)

    def check(self) -> None:
        """Raises `StorageFailed` if the file is no longer the one at its path: rows would be lost."""
        processes.from_first(self._check)

    def _check(self) -> None:
        try:
            ours = os.path.samestat(os.stat(self.path), os.fstat(self.file.fileno()))
        except OSError:
            ours = False
        if not ours:
            raise StorageFailed(f"{self.path} was deleted, moved or replaced while the run was writing it")

    def write_csv(self) -> None:
        """Writes all rows as metrics.csv, for spreadsheets: a column for each key. Raises `StorageFailed`."""
        processes.from_first(self._write_csv)

    def _write_csv(self) -> None:
        rows = [json.loads(line) for line in self.path.read_text().splitlines()]
        table = io.StringIO()
        writer = csv.DictWriter(table, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        storage.write_whole(self.path.with_suffix(".csv"), table.getvalue())

    def close(self) -> None:
        """Closes the files."""
        if processes.is_first():
            with contextlib.suppress(OSError):  # a failed write has been reported already
                self.file.close()
            if self.tensorboard:
                self.tensorboard.close()


def eval_name(split: str) -> str:
    """The name of an evaluation split in its rows: "test" for "test[:1000]", "validation" for a part of "train"."""
    name = split.split("[")[0]
    return "validation" if name == "train" else name
