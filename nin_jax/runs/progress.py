"""What a run knows of its past, besides its state."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from nin_jax import config as config_lib
from nin_jax.config import Config
from nin_jax.data import splits
from nin_jax.data.splits import Info


@dataclasses.dataclass(frozen=True)
class Progress:
    """Exactly what a checkpoint notes of its run besides the state, for the run that resumes from it. All of it is JSON.

    Attributes:
      loss, error: sums of the batch means since the last training row.
      updates: how many those were.
      constant_for: for each class, the updates in a row in which it had the same logit for every image; empty before the
        first update.
      seconds: spent on each part of the run so far, see `Clock`.
    """

    loss: float = 0.0
    error: float = 0.0
    updates: int = 0
    constant_for: tuple[int, ...] = ()
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, notes: Mapping[str, Any]) -> Progress:
        """From the notes of a checkpoint, if they have any."""
        plain = notes.get("progress", {})
        return cls(**plain | {"constant_for": tuple(plain.get("constant_for", ()))})

    def notes(self, seconds: Mapping[str, float], config: Config, data: str, info: Info) -> dict[str, Any]:
        """What a checkpoint notes.

        Args:
          seconds: as of now.
          config: of the run.
          data: what its training examples are known by.
          info: facts of the data set.
        """
        progress = dataclasses.asdict(dataclasses.replace(self, seconds=dict(seconds)))
        # If the last update left every logit constant, a rollback must not return here.
        healthy = not self.constant_for or not all(self.constant_for)
        facts = {"data": data, "dataset": splits.to_notes(info), "config": config_lib.to_dict(config)}
        return {"progress": progress, "healthy": healthy, **facts}

    def means(self) -> dict[str, float]:
        """Mean loss and error of the updates since the last row."""
        return {"loss": self.loss / self.updates, "error_pct": 100 * self.error / self.updates}

    def after_row(self) -> Progress:
        """The same with the sums reset."""
        return dataclasses.replace(self, loss=0.0, error=0.0, updates=0)
