"""What a training run shows on stderr: on a terminal one row an epoch above a bar of the whole run, elsewhere plain lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from nin_jax.console import console, duration, say

SAY_EVERY = 30  # seconds between two lines where stderr is no terminal


class Display:
    """Shows the rows of a run, how far it is, and the time left.

    Args:
      update: of the run's `console.bar`.
      split: what rows of evaluation are called, see `record.eval_name`.
      epochs, last: the epochs and the updates of the whole run.
      batch_size: images of an update.
    """

    def __init__(self, update: Callable[..., None], split: str, epochs: int, last: int, batch_size: int):
        self.update, self.split, self.epochs, self.last, self.batch_size = update, split, epochs, last, batch_size
        self.epoch_began = self.run_began = 0.0, 0  # seconds, and the updates that were finished then
        self.said = time.perf_counter()
        self.waiting: dict[str, Mapping[str, Any]] = {}  # rows of this epoch by split
        self.has_head = False

    def begin_epoch(self, epoch: int, step: int) -> None:
        """The updates of an epoch begin, or go on, after `step`; the first call starts the clock of the time left."""
        self.epoch_began = time.perf_counter(), step
        self.run_began = self.run_began if self.run_began[0] else self.epoch_began
        self.update(description=f"epoch {epoch} of {self.epochs}")

    def finished(self, step: int) -> float:
        """`step` updates are finished. Returns the images per second since this start of the epoch.

        The time left is that of the remaining updates at the mean pace since the run began or resumed, evaluations and
        checkpoints included.
        """
        now = time.perf_counter()
        (epoch_began, epoch_step), (run_began, run_step) = self.epoch_began, self.run_began
        images_per_s = (step - epoch_step) * self.batch_size / (now - epoch_began)
        left = (self.last - step) * (now - run_began) / (step - run_step)
        self.update(completed=step, images_per_s=images_per_s, seconds_left=left)
        if not console.is_terminal and now - self.said > SAY_EVERY:
            self.said = now
            say(f"step {step} of {self.last}, {images_per_s:,.0f} images/s, {duration(left)} left")
        return images_per_s

    def row(self, row: Mapping[str, Any]) -> None:
        """A row of the record, of training or evaluation; on a terminal it waits for the end of its epoch."""
        if console.is_terminal:
            self.waiting[row["split"]] = row
        else:
            numbers = ", ".join(f"{k} {v:,.4g}" for k, v in row.items() if k not in ("step", "split", "epoch"))
            say(f"epoch {row['epoch']:g}, step {row['step']}, {row['split']}: {numbers}")

    def end_epoch(self) -> None:
        """Shows the rows that wait, training and evaluation side by side."""
        if not self.waiting:
            return
        train, evaluated = self.waiting.pop("train", {}), self.waiting.pop(self.split, {})
        either = {**train, **evaluated}
        split = "val" if self.split == "validation" else self.split
        cells = {
            "epoch": f"{either['epoch']:g}/{self.epochs}",
            "rate": f"{either['learning_rate']:.4g}",
            "train loss": _number(train.get("loss"), ".4f"),
            "train err%": _number(train.get("error_pct"), ".2f"),
            f"{split} loss": _number(evaluated.get("loss"), ".4f"),
            f"{split} err%": _number(evaluated.get("error_pct"), ".2f"),
            "images/s": _number(train.get("images_per_s"), ",.0f"),
        }
        others = evaluated.keys() - {"step", "epoch", "split", "learning_rate", "images_per_s", "loss", "error_pct"}
        if not self.has_head:
            say("  ".join(name.rjust(_width(name)) for name in cells))
            self.has_head = True
        line = "  ".join(value.rjust(_width(name)) for name, value in cells.items())
        say("  ".join([line, *(f"{key.removesuffix('_pct')} {evaluated[key]:.2f}" for key in sorted(others))]))


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _width(name: str) -> int:
    return max(len(name), 9)
