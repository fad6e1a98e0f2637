"""summary.json: the result of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from nin_jax import config as config_lib
from nin_jax import storage
from nin_jax.config import Config
from nin_jax.console import say
from nin_jax.devices import processes
from nin_jax.runs.provenance import commit, versions


@dataclasses.dataclass(frozen=True)
class Summary:
    """Writes summary.json of one start of a run.

    Attributes:
      workdir, config, mesh: of the run.
      epoch_updates: updates of an epoch.
      params: number of parameters.
      bad_records: how many were left out of each split; None if they are found in the course of the run.
      pictures: `Info.counts` of the data set; empty where it has none.
      rollbacks: see `rollback`.
    """

    workdir: Path
    config: Config
    mesh: Mesh
    epoch_updates: int
    params: int
    bad_records: Mapping[str, int | None]
    pictures: Mapping[str, int]
    rollbacks: Sequence[Mapping[str, Any]]

    def write(
        self, status: str, step: int, evaluation: Mapping[str, float] | None, seconds: Mapping[str, float]
    ) -> dict[str, Any]:
        """Writes and returns the summary.

        Args:
          status: "done" or "diverged".
          step: finished updates.
          evaluation: of the network after these; None if there was none.
          seconds: spent on each part of the run, see `Clock`.
        """
        c, evaluation, train_seconds = self.config, evaluation or {}, seconds.get("train", 0.0)
        device = self.mesh.devices.flat[0]
        summary = {
            "status": status,
            "step": step,
            "epochs": step / self.epoch_updates,
            "params": self.params,
            "test_error_pct": evaluation.get("error_pct"),
            **{f"test_{k}": v for k, v in evaluation.items() if k not in ("error_pct", "loss", "examples")},
            "test_loss": evaluation.get("loss"),
            "test_examples": evaluation.get("examples"),
            "train_seconds": train_seconds,
            "compile_seconds": seconds.get("compile", 0.0),
            "eval_seconds": seconds.get("eval", 0.0),
            "images_per_s": step * c.batch_size / train_seconds if train_seconds else 0.0,
            "device": f"{device.platform} {device.device_kind}",
            "devices": self.mesh.size,
            "seed": c.seed,
            "bad_records": self.bad_records,
            **({"pictures": dict(self.pictures)} if self.pictures else {}),
            "rollbacks": self.rollbacks,
            "versions": versions(),
            "commit": commit(),
            "fingerprint": config_lib.fingerprint(c),
        }
        processes.from_first(lambda: storage.write_json(self.workdir / "summary.json", summary))
        if status == "done":
            say(
                f"done: test error {summary['test_error_pct']:.2f} % of {summary['test_examples']}, "
                f"{train_seconds:.1f} s of training, {summary['images_per_s']:,.0f} images/s; {self.workdir}/summary.json"
            )
        return summary
