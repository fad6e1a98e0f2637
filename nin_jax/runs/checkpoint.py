"""Checkpoints: the only file that imports orbax.

Orbax writes atomically, but restores a flipped bit without a word and has no way back from a broken newest step. So
each checkpoint carries a CRC-32 for every array, every restore is verified, and a broken step is named, set aside and
stepped over.
"""

from __future__ import annotations

import copy
import dataclasses
import gc
import json
import math
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from nin_jax import storage
from nin_jax.console import say
from nin_jax.devices import processes
from nin_jax.errors import ExitError, StorageFailed, UserError, one_line, out_of_memory


class Checkpoints:
    """The checkpoints of a run directory, DIR/checkpoints/STEP.

    Kept are the newest `keep` and the one with the lowest "error_pct" among those saved with a finite one. With several
    processes all have to call the same methods; the first one alone writes and reads, and what it meets all get.
    """

    def __init__(self, workdir: Path, keep: int = 1, *, read_only: bool = False):
        self.directory, self.read_only = workdir.absolute() / "checkpoints", read_only
        processes.from_first(lambda: self._open(keep))

    def _open(self, keep: int) -> None:
        read_only = self.read_only
        policy = preservation_policy.AnyPreservationPolicy(
            [
                preservation_policy.LatestN(keep),
                preservation_policy.BestN(
                    get_metric_fn=_error_pct, reverse=True, n=1, keep_checkpoints_without_metrics=False
                ),
            ]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
            create=False,
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=0, active_processes={0}, barrier_sync_key_prefix="nin_jax"
            ),
        )
        try:
            if not read_only:
                self.directory.mkdir(parents=True, exist_ok=True)
            self.manager = self._manager(self.directory, options)
        except OSError as error:
            raise StorageFailed(f"cannot use {self.directory}: {one_line(error)}") from error
        except Exception as error:  # one step with damaged metadata is enough, and orbax raises anything
            if out_of_memory(error):
                raise
            self._open_without(self._unreadable(options, error), options)

    def _manager(self, directory: Path, options: ocp.CheckpointManagerOptions) -> ocp.CheckpointManager:
        return _Manager(directory, options=options, item_names=("state", "notes"))

    def _unreadable(self, options: ocp.CheckpointManagerOptions, error: Exception) -> list[Path]:
        """The steps that orbax cannot even list, each looked at alone; `StorageFailed` if it is none of them."""
        found = []
        for step in (d for d in self.directory.iterdir() if d.name.isdigit()):
            with tempfile.TemporaryDirectory() as alone:
                (Path(alone) / step.name).symlink_to(step)
                try:
                    self._manager(
                        Path(alone), dataclasses.replace(options, read_only=True, cleanup_tmp_directories=False)
                    )
                except Exception as why:
                    say(f"checkpoint {step} is broken ({one_line(why)[:300]}): stepped over")
                    found.append(step)
        if not found:
            raise StorageFailed(f"cannot use {self.directory}: {one_line(error)[:300]}") from error
        return found

    def _open_without(self, broken: list[Path], options: ocp.CheckpointManagerOptions) -> None:
        """Opens what is left; read-only through links, else with the broken steps set aside."""
        directory = self.directory
        if self.read_only:
            self.links = tempfile.TemporaryDirectory()
            directory = Path(self.links.name)
            for step in (d for d in self.directory.iterdir() if d.name.isdigit() and d not in broken):
                (directory / step.name).symlink_to(step)
        else:
            self._rename([int(step.name) for step in broken])
        self.manager = self._manager(directory, options)

    def save(
        self,
        step: int,
        state: Any,
        notes: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
        *,
        wait: bool = False,
    ) -> None:
        """Saves in the background, or with `wait` until it is on disk; a step that is already there is left as it is.

        After one in the background that failed, the next is not in the background: it is tried again with pauses
        (`storage.persist`) before it ends in `StorageFailed`.

        Args:
          step: finished updates.
          state: the tree of arrays.
          notes: JSON values that belong to this step.
          metrics: evaluation of this very state, with "error_pct", if there was one.
        """
        processes.from_first(lambda: self._save(step, processes.to_store(state), notes, metrics, wait))

    def _save(
        self, step: int, state: Any, notes: Mapping[str, Any], metrics: Mapping[str, float] | None, wait: bool
    ) -> None:
        try:
            self._wait()
        except StorageFailed as failed:
            say(f"{failed}; trying again with step {step}")
            wait = True
        if step in self.manager.all_steps():
            return
        # Orbax writes the notes later, in a thread of its own, while the caller goes on counting in them.
        notes = {"crc32": checksums(state), **copy.deepcopy(dict(notes))}
        notes["crc32_of_notes"] = _crc_of_notes(notes)
        content = ocp.args.Composite(state=ocp.args.StandardSave(_parts(state)), notes=ocp.args.JsonSave(notes))

        def write() -> None:
            try:
                self.manager.save(step, args=content, metrics=dict(metrics) if metrics else None, force=True)
                if wait:
                    self.manager.wait_until_finished()
            except (OSError, ValueError) as error:  # tensorstore's errors of the file system are ValueErrors
                self._remove_unfinished()
                if isinstance(error, OSError):
                    raise
                raise OSError(one_line(error)) from error

        storage.persist(f"checkpoint {self.directory / str(step)}", write)

    def wait(self) -> None:
        """Returns when everything saved is on disk."""
        processes.from_first(self._wait)

    def _wait(self) -> None:
        try:
            self.manager.wait_until_finished()
        except (OSError, ValueError) as error:
            self._remove_unfinished()
            raise StorageFailed(f"checkpoint in {self.directory} failed: {one_line(error)}") from error

    def _remove_unfinished(self) -> None:
        """Removes what a save that failed has left: it would keep a full disk full."""
        for leftover in self.directory.glob("*.orbax-checkpoint-tmp"):
            shutil.rmtree(leftover, ignore_errors=True)

    def drop_while(self, unwanted: Callable[[Mapping[str, Any]], bool]) -> int:
        """Deletes the newest checkpoint for as long as its notes are `unwanted`; the newest step left, or 0.

        One whose notes cannot be read is left for `restore` to judge.
        """
        return processes.from_first(lambda: self._drop_while(unwanted))

    def _drop_while(self, unwanted: Callable[[Mapping[str, Any]], bool]) -> int:
        while step := self.manager.latest_step():
            try:
                content = ocp.args.Composite(notes=ocp.args.JsonRestore())
                notes: Any = self.manager.restore(step, args=content)["notes"]
            except Exception:  # orbax raises anything on damaged files
                return step
            if not unwanted(notes):
                return step
            self.manager.delete(step)
        return 0

    def restore(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """The newest good checkpoint, each array verified, placed where the arrays of `like` lie.

        Broken ones are named in a line each and, unless read-only, renamed to checkpoints/broken-STEP.

        Args:
          like: tree of `jax.ShapeDtypeStruct` with shardings. Raises `UserError` where a checkpoint is of another structure.

        Returns:
          (step, state, notes), or None when there is no checkpoint.
        """
        states = []

        def newest() -> tuple[int, dict[str, Any]] | None:
            found = self._newest(processes.to_store(like))
            if found is None:
                return None
            states.append(found[1])
            return found[0], found[2]

        found = processes.from_first(newest)
        if found is None:
            return None
        step, notes = found
        return step, processes.placed_like(states[0] if states else None, like), notes

    def _newest(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
        broken = []
        found = None
        for step in sorted(self.manager.all_steps(), reverse=True):
            try:
                found = step, *self._verified(step, like)
                break
            except ExitError:
                raise
            except Exception as error:  # orbax and tensorstore raise anything on damaged files
                if out_of_memory(error):
                    raise
                broken.append((step, one_line(error)[:300]))
        if broken:
            time.sleep(0.2)  # for the reads that are still out
            gc.collect()
        for step, why in broken:
            none = "no older one is left" + ("" if self.read_only else ": starting at step 0")
            then = f"going back to step {found[0]}" if found else none
            say(f"checkpoint {self.directory / str(step)} is broken ({why}): {then}")
        if broken and not self.read_only:
            self._set_aside([step for step, _ in broken])
        return found

    def _verified(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        notes = self.manager.restore(step, args=ocp.args.Composite(notes=ocp.args.JsonRestore()))["notes"]
        if notes.pop("crc32_of_notes") != _crc_of_notes(notes):
            raise ValueError("notes: checksum differs")
        wanted = notes.pop("crc32")
        theirs, mine = {path: kind.rsplit(" ", 1)[0] for path, kind in wanted.items()}, kinds(like)
        if theirs != mine:
            path = min(p for p in theirs.keys() | mine.keys() if theirs.get(p) != mine.get(p))
            raise UserError(
                f"checkpoint {self.directory / str(step)} is of another network: {path} is {theirs.get(path, 'not there')} "
                f"in it, but {mine.get(path, 'not there')} with this config"
            )
        content = ocp.args.Composite(state=ocp.args.StandardRestore(_parts(like)))
        parts = self.manager.restore(step, args=content)["state"]
        state: Any = dataclasses.replace(like, **parts) if dataclasses.is_dataclass(like) else parts  # pyright: ignore
        got = checksums(state)
        for path in sorted(wanted.keys() | got.keys()):
            if wanted.get(path) != got.get(path):
                raise ValueError(f"{path}: checksum differs")
        return state, notes

    def _set_aside(self, steps: list[int]) -> None:
        self._rename(steps)
        self.manager.reload()

    def _rename(self, steps: list[int]) -> None:
        try:
            for step in steps:
                target = self.directory / f"broken-{step}"
                shutil.rmtree(target, ignore_errors=True)
                (self.directory / str(step)).rename(target)
        except OSError as error:
            raise StorageFailed(f"cannot set a broken checkpoint aside: {error}") from error

    def close(self) -> None:
        """Waits for what is being saved and lets go. The other processes, which may be in trouble, are not waited for."""
        if processes.is_first():
            self._wait()
            self.manager.close()


class _Manager(ocp.CheckpointManager):
    """Orbax's, which asks at each save whether the run is to stop; `processes.stop_requested` counts who asks when."""

    def reached_preemption(self, step: int) -> bool:
        return False


def _parts(state: Any) -> Any:
    """What orbax is given: of a dataclass the fields that hold arrays, so that it may get new ones that are empty."""
    if not dataclasses.is_dataclass(state):
        return state
    fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
    return {name: value for name, value in fields.items() if jax.tree.leaves(value)}


def _crc_of_notes(notes: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(notes, sort_keys=True).encode()):08x}"


def checksums(tree: Any) -> dict[str, str]:
    """Every array of a tree by path: "DTYPE SHAPE CRC-32"."""

    def crc(leaf: jax.Array) -> str:
        return f"{zlib.crc32(np.asarray(leaf).tobytes()):08x}"

    return {
        path: f"{kind} {crc(leaf)}"
        for (path, kind), leaf in zip(kinds(tree).items(), jax.tree.leaves(tree), strict=True)
    }


def kinds(tree: Any) -> dict[str, str]:
    """Every array of a tree by path: "DTYPE SHAPE"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): f"{leaf.dtype} {list(leaf.shape)}".replace(", ", "x") for path, leaf in leaves}


def _error_pct(metrics: Mapping[str, float]) -> float:
    """What checkpoints are ranked by; one that is not finite never counts as the best."""
    value = metrics.get("error_pct", math.inf)
    return value if math.isfinite(value) else math.inf
