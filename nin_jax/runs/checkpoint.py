"""Checkpoints: the only file that imports orbax.

DIR/checkpoints/STEP holds `state`, the arrays as orbax stores them, and `notes.json`. A step is written under a hidden
name and renamed when it is complete, so a listed step is complete. Orbax restores flipped bits silently; here the notes
have a CRC-32 of each array and of themselves, and every restore verifies them. A broken step is named, set aside and
skipped.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict

from nin_jax import storage
from nin_jax.console import say
from nin_jax.devices import processes
from nin_jax.errors import ExitError, StorageFailed, UserError, one_line, out_of_memory


class Checkpoints:
    """The checkpoints of a run directory, DIR/checkpoints/STEP.

    The newest `keep` are kept, and the best: the one with the lowest "error_pct". With several processes, all have to
    call the same methods; only the first one writes and reads, and the others get what it finds.
    """

    def __init__(self, workdir: Path, keep: int = 1, *, read_only: bool = False):
        self.directory, self.keep, self.read_only = workdir.absolute() / "checkpoints", keep, read_only
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.saving: Future[None] | None = None
        if not read_only:
            processes.from_first(lambda: _open(self.directory))

    def steps(self) -> list[int]:
        """The existing steps, in order. Raises `StorageFailed`."""
        return processes.from_first(lambda: _steps(self.directory))

    def save(
        self, step: int, state: Any, notes: Mapping[str, Any], metrics: Mapping[str, float] | None = None, *, wait=False
    ) -> None:
        """Saves in the background, or with `wait` until it is on disk. An existing step is left as it is.

        A failing save is retried with pauses (`storage.persist`). After a background save has failed for good, the next
        one is not in the background, and raises `StorageFailed` if it fails too.

        Args:
          step: finished updates.
          state: the tree of arrays.
          notes: JSON values that belong to this step.
          metrics: the evaluation of this state, with "error_pct", if there was one.
        """
        processes.from_first(lambda: self._save(step, state, {"notes": notes, "metrics": metrics or {}}, wait))

    def _save(self, step: int, state: Any, content: dict[str, Any], wait: bool) -> None:
        try:
            self._wait()
        except StorageFailed as failed:
            say(f"{failed}; trying again with step {step}")
            wait = True
        if step in _steps(self.directory):
            return
        # Copies: the next update takes the memory of this state, and the caller keeps counting in the notes.
        arrays = {path: np.array(leaf) for path, leaf in _leaves(state).items()}
        text = json.dumps(content | {"arrays": checksums(arrays)}, sort_keys=True)
        self.saving = self.thread.submit(_write, self.directory, step, arrays, text, self.keep)
        if wait:
            self._wait()

    def wait(self) -> None:
        """Waits until everything saved is on disk. Raises `StorageFailed`."""
        processes.from_first(self._wait)

    def _wait(self) -> None:
        saving, self.saving = self.saving, None
        if saving:
            saving.result()

    def drop_while(self, unwanted: Callable[[Mapping[str, Any]], bool]) -> int:
        """Deletes the newest checkpoint for as long as its notes are `unwanted`; returns the newest step left, or 0.

        A checkpoint whose notes cannot be read is left for `restore` to judge.
        """

        def drop() -> int:
            for step in reversed(_steps(self.directory)):
                try:
                    notes = verified_notes(self.directory / str(step))["notes"]
                except Exception:  # damaged in whatever way
                    return step
                if not unwanted(notes):
                    return step
                _remove(self.directory / str(step))
            return 0

        return processes.from_first(drop)

    def notes(self) -> dict[str, Any] | None:
        """The newest good notes of a checkpoint; None if there are none."""

        def newest() -> dict[str, Any] | None:
            for step in reversed(_steps(self.directory)):
                with contextlib.suppress(Exception):  # damaged in whatever way: `restore` reports it
                    return verified_notes(self.directory / str(step))["notes"]
            return None

        return processes.from_first(newest)

    def restore(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """The newest good checkpoint, each array verified and placed like the arrays of `like`.

        Each broken one is named in a line and, unless read-only, renamed to checkpoints/broken-STEP.

        Args:
          like: tree of `jax.ShapeDtypeStruct` with shardings. Raises `UserError` where a checkpoint is of another structure.

        Returns:
          (step, state, notes), or None when there is no checkpoint.
        """
        state = None

        def newest() -> tuple[int, dict[str, Any]] | None:
            nonlocal state
            if (found := self._newest(_leaves(like))) is None:
                return None
            step, arrays, notes = found
            state = jax.tree.unflatten(jax.tree.structure(like), list(arrays.values()))
            return step, notes

        found = processes.from_first(newest)
        return found and (found[0], processes.placed_like(state, like), found[1])

    def _newest(self, like: Mapping[str, Any]) -> tuple[int, dict[str, np.ndarray], dict[str, Any]] | None:
        broken, found = {}, None
        for step in reversed(_steps(self.directory)):
            folder = self.directory / str(step)
            try:
                found = step, *storage.retry(functools.partial(_read, folder, like), storage.may_pass)
                break
            except ExitError:
                raise
            except PermissionError as error:  # says nothing about the checkpoint
                raise StorageFailed(f"cannot read checkpoint {folder}: {one_line(error)}") from error
            except Exception as error:  # orbax and tensorstore raise anything on damaged files
                if out_of_memory(error):
                    raise
                broken[step] = one_line(error)[:300]
        none = "no older one is left" + ("" if self.read_only else ": starting at step 0")
        for step, why in broken.items():
            folder = self.directory / str(step)
            say(f"checkpoint {folder} is broken ({why}): {f'going back to step {found[0]}' if found else none}")
            if not self.read_only:
                aside = folder.with_name(f"broken-{step}")
                shutil.rmtree(aside, ignore_errors=True)
                storage.persist(f"{folder} as {aside.name}", functools.partial(folder.rename, aside))
        return found

    def close(self) -> None:
        """Waits for the save in progress. The other processes, which may be in trouble, are not waited for."""
        try:
            self._wait()
        finally:
            self.thread.shutdown()


def _open(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for entry in directory.iterdir():
            if re.fullmatch(r"\.[0-9]+\.(new|old)", entry.name):  # left by a save or a removal that was cut short
                shutil.rmtree(entry, ignore_errors=True)
    except OSError as error:
        raise StorageFailed(f"cannot use {directory}: {one_line(error)}") from error


def _steps(directory: Path) -> list[int]:
    try:
        names = [entry.name for entry in directory.iterdir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageFailed(f"cannot use {directory}: {one_line(error)}") from error
    return sorted(int(name) for name in names if re.fullmatch(r"0|[1-9][0-9]*", name))


def _write(directory: Path, step: int, arrays: dict[str, np.ndarray], text: str, keep: int) -> None:
    """Writes a step, reads it back, and only then removes the steps that are not kept. Raises `StorageFailed`."""
    folder, scratch = directory / str(step), directory / f".{step}.new"

    def write() -> None:
        try:
            scratch.mkdir()
            with _literal(scratch) as literal, _orbax() as orbax:
                orbax.save(literal / "state", args=ocp.args.StandardSave(unflatten_dict(arrays, sep="/")))
            storage.write_json(scratch / "notes.json", {"crc32": _crc(text.encode()), "content": text})
            _read(scratch, arrays)
            scratch.rename(folder)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # tensorstore's errors of the file system, and anything where damage is read back
            raise OSError(one_line(error)) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)  # half a checkpoint would keep the disk full

    storage.persist(f"checkpoint {folder}", write)
    errors = {step: _error_pct(directory / str(step)) for step in _steps(directory)}
    best = min(errors, key=lambda step: (errors[step], -step))
    for old in list(errors)[:-keep]:
        if old != best or math.isinf(errors[old]):
            _remove(directory / str(old))


def _remove(folder: Path) -> None:
    doomed = folder.with_name(f".{folder.name}.old")  # if the removal is cut short, nothing that is left is listed
    storage.persist(f"removal of {folder}", lambda: folder.rename(doomed))
    shutil.rmtree(doomed, ignore_errors=True)


def _error_pct(folder: Path) -> float:
    """The error that checkpoints are ranked by; infinite if there is no finite one."""
    try:
        value = float(verified_notes(folder)["metrics"]["error_pct"])
    except Exception:  # no error, or damaged notes
        return math.inf
    return value if math.isfinite(value) else math.inf


def verified_notes(folder: Path) -> dict[str, Any]:
    """The verified notes.json of a step: "notes", "metrics" and "arrays". Raises anything on a damaged file."""
    stored = json.loads((folder / "notes.json").read_text())
    if stored["crc32"] != _crc(stored["content"].encode()):
        raise ValueError("notes: checksum differs")
    return json.loads(stored["content"])


def _read(folder: Path, like: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The verified arrays of a step, in the order of `like`, and its notes. Raises anything on damaged files."""
    content = verified_notes(folder)
    wanted = content["arrays"]
    theirs, mine = {path: text.rsplit(" ", 1)[0] for path, text in wanted.items()}, kinds(like)
    if theirs != mine:
        path = min(p for p in theirs.keys() | mine.keys() if theirs.get(p) != mine.get(p))
        raise UserError(
            f"checkpoint {folder} is of another network: {path} is {theirs.get(path, 'not there')} in it, but "
            f"{mine.get(path, 'not there')} with this config"
        )
    empty = unflatten_dict({path: np.empty(a.shape, a.dtype) for path, a in like.items()}, sep="/")
    with _literal(folder) as literal, _orbax() as orbax:
        arrays: Any = flatten_dict(orbax.restore(literal / "state", args=ocp.args.StandardRestore(empty)), sep="/")
    got = checksums(arrays)
    for path in sorted(wanted):
        if wanted[path] != got[path]:
            raise ValueError(f"{path}: checksum differs")
    return {path: arrays[path] for path in like}, content["notes"]


def _orbax() -> ocp.Checkpointer:
    """Orbax for the first process alone, whatever the others do."""
    alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0}, barrier_sync_key_prefix="nin_jax")
    return ocp.Checkpointer(ocp.StandardCheckpointHandler(multiprocessing_options=alone), multiprocessing_options=alone)


@contextlib.contextmanager
def _literal(folder: Path) -> Iterator[Path]:
    """A path of a folder that orbax and tensorstore take literally: else they expand [1] and read a backslash as /."""
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        path = Path(f"/proc/self/fd/{number}")
        yield path if path.exists() else folder  # only Linux has such paths
    finally:
        os.close(number)


def _leaves(tree: Any) -> dict[str, Any]:
    """Every array of a tree by its path, such as "params/conv1/kernel"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _crc(content: bytes) -> str:
    return f"{zlib.crc32(content):08x}"


def kinds(tree: Any) -> dict[str, str]:
    """Every array of a tree by path: "DTYPE SHAPE"."""
    return {path: f"{a.dtype} {list(a.shape)}".replace(", ", "x") for path, a in _leaves(tree).items()}


def checksums(tree: Any) -> dict[str, str]:
    """Every array of a tree by path: "DTYPE SHAPE CRC-32"."""
    leaves = _leaves(tree)
    return {path: f"{kind} {_crc(np.asarray(leaves[path]).tobytes())}" for path, kind in kinds(tree).items()}
