"""Checkpoints: the only file that imports orbax.

Orbax writes atomically, but restores a flipped bit without a word and has no way back from a broken newest step. So
each checkpoint carries a CRC-32 for every array, every restore is verified, and a broken step is named, set aside and
stepped over.
"""

from __future__ import annotations

import logging
import math
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from nin_jax import parallel
from nin_jax.errors import StorageFailed
from nin_jax.report import one_line, say


class Checkpoints:
    """The checkpoints of a run directory, DIR/checkpoints/STEP.

    Kept are the newest `keep` and the one with the lowest "error_pct" among those saved with a finite one.
    """

    def __init__(self, workdir: Path, keep: int = 1, *, read_only: bool = False):
        logging.getLogger("absl").setLevel(logging.ERROR)  # orbax tells of every file it writes
        self.directory = workdir.absolute() / "checkpoints"
        policy = preservation_policy.AnyPreservationPolicy(
            [
                preservation_policy.LatestN(keep),
                preservation_policy.BestN(
                    get_metric_fn=_error_pct, reverse=True, n=1, keep_checkpoints_without_metrics=False
                ),
            ]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy, cleanup_tmp_directories=not read_only, read_only=read_only, create=not read_only
        )
        try:
            self.manager = ocp.CheckpointManager(self.directory, options=options, item_names=("state", "notes"))
        except (OSError, ValueError) as error:
            raise StorageFailed(f"cannot use {self.directory}: {one_line(error)}") from error

    def save(self, step: int, state: Any, notes: Mapping[str, Any], metrics: Mapping[str, float] | None = None) -> None:
        """Saves in the background; a step that is already there is left as it is.

        Args:
          step: finished updates.
          state: the tree of arrays.
          notes: JSON values that belong to this step.
          metrics: evaluation of this very state, with "error_pct", if there was one.
        """
        if step in self.manager.all_steps():
            return
        content = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            notes=ocp.args.JsonSave({"crc32": checksums(state), **notes}),
        )
        try:
            self.manager.save(step, args=content, metrics=dict(metrics) if metrics else None, force=True)
        except (OSError, ValueError) as error:  # a failure of the save before this one may show here
            raise StorageFailed(f"checkpoint in {self.directory} failed: {one_line(error)}") from error

    def wait(self) -> None:
        """Returns when everything saved is on disk."""
        try:
            self.manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise StorageFailed(f"checkpoint in {self.directory} failed: {one_line(error)}") from error

    def restore(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """The newest good checkpoint, each array verified, placed where the arrays of `like` lie.

        Broken ones are named in a line each and, unless read-only, renamed to checkpoints/broken-STEP.

        Args:
          like: tree of arrays (or `jax.ShapeDtypeStruct` with shardings) of the same structure.

        Returns:
          (step, state, notes), or None when there is no checkpoint.
        """
        broken = []
        found = None
        for step in sorted(self.manager.all_steps(), reverse=True):
            try:
                found = step, *self._verified(step, like)
                break
            except Exception as error:  # orbax and tensorstore raise anything on damaged files
                broken.append((step, one_line(error)[:300]))
        for step, why in broken:
            then = f"going back to step {found[0]}" if found else "no older one is left: starting at step 0"
            say(f"checkpoint {self.directory / str(step)} is broken ({why}): {then}")
        if broken and not self.manager._options.read_only:
            self._set_aside([step for step, _ in broken])
        return found

    def _verified(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        content = self.manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract), notes=ocp.args.JsonRestore())
        )
        state, notes = content.state, content.notes
        wanted, got = notes.pop("crc32"), checksums(state)
        for path in sorted(wanted.keys() | got.keys()):
            if wanted.get(path) != got.get(path):
                raise ValueError(f"{path}: checksum differs")
        return state, notes

    def _set_aside(self, steps: list[int]) -> None:
        try:
            for step in steps:
                target = self.directory / f"broken-{step}"
                shutil.rmtree(target, ignore_errors=True)
                (self.directory / str(step)).rename(target)
        except OSError as error:
            raise StorageFailed(f"cannot set a broken checkpoint aside: {error}") from error
        self.manager.reload()

    def close(self) -> None:
        """Waits for what is being saved and lets go."""
        self.wait()
        self.manager.close()


def checksums(tree: Any) -> dict[str, str]:
    """CRC-32 of every array of a tree, with its dtype and shape, by path."""
    found = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        array = np.ascontiguousarray(parallel.host(leaf))
        crc = zlib.crc32(array.view(np.uint8).reshape(-1) if array.size else b"")
        found[jax.tree_util.keystr(path)] = f"{array.dtype} {list(array.shape)} {crc:08x}"
    return found


def _error_pct(metrics: Mapping[str, float]) -> float:
    """What checkpoints are ranked by; one that is not finite never counts as the best."""
    value = metrics.get("error_pct", math.inf)
    return value if math.isfinite(value) else math.inf
