"""The cache of decoded data sets, which are memory-mapped."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nin_jax.console import say
from nin_jax.data.splits import Split
from nin_jax.errors import ExitError, StorageFailed, one_line


def cache_dir() -> Path:
    """`$XDG_CACHE_HOME/nin_jax`, by default `~/.cache/nin_jax`."""
    return Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "nin_jax"


def entry_of(name: str, facts: Sequence[Any]) -> Path:
    """The folder in the cache of what is made from these `facts`, named after `name` and their hash."""
    return cache_dir() / f"{name}-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}"


@contextlib.contextmanager
def filling(entry: Path) -> Iterator[Path]:
    """A new folder, to be filled inside the `with`: complete, it becomes `entry`, unless another process was first."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=entry.parent, prefix=f".{entry.name}-"))
    try:
        yield scratch
        scratch.chmod(0o755)
        try:
            scratch.rename(entry)
        except OSError:
            if not entry.exists():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def cached(
    name: str,
    facts: Sequence[Any],
    make: Callable[[], Split],
    parts: tuple[str, str] = ("images", "labels"),
) -> Split:
    """The two arrays that `make` returned for these `facts`, the first memory-mapped; made if missing or broken.

    Its entry has a file for each of `parts` and their checksums.
    """
    entry = entry_of(name, facts)
    if entry.exists():
        try:
            return _read(entry, parts)
        except ExitError:  # a signal may arrive here too
            raise
        except Exception as error:  # NumPy raises anything on a damaged file
            say(f"cached data set {entry} is broken ({one_line(error)}): decoding it again")
            shutil.rmtree(entry, ignore_errors=True)
    arrays = make()
    try:
        with filling(entry) as scratch:
            checksums = {part: _checksum(array) for part, array in zip(parts, arrays, strict=True)}
            for part, array in zip(parts, arrays, strict=True):
                np.save(scratch / f"{part}.npy", array, allow_pickle=False)
            (scratch / "checksums.json").write_text(json.dumps(checksums))
    except OSError as error:
        raise StorageFailed(f"cannot cache the decoded data set in {entry.parent} (XDG_CACHE_HOME): {error}") from error
    try:
        return _read(entry, parts)
    except ExitError:
        raise
    except Exception:  # another process found a broken entry and is just removing this one in its place
        return arrays


def _read(entry: Path, parts: tuple[str, str]) -> Split:
    first, second = (np.load(entry / f"{part}.npy", mmap_mode="r", allow_pickle=False) for part in parts)
    checksums = json.loads((entry / "checksums.json").read_text())
    for part, array in zip(parts, (first, second), strict=True):
        if _checksum(array) != checksums[part]:
            raise ValueError(f"{part}.npy: checksum differs")
    return first, np.array(second)


def _checksum(array: np.ndarray) -> str:
    """dtype, shape and CRC-32: a flipped bit in the header of an .npy file shows too."""
    return f"{array.dtype} {array.shape} {zlib.crc32(np.ascontiguousarray(array).data):08x}"
