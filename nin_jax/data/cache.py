"""The memory-mapped cache of decoded data sets."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nin_jax.console import say
from nin_jax.data.splits import Split
from nin_jax.errors import ExitError, StorageFailed, one_line


def cache_dir() -> Path:
    """`$XDG_CACHE_HOME/nin_jax`, by default `~/.cache/nin_jax`."""
    return Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "nin_jax"


def cached(
    name: str,
    facts: Sequence[Any],
    make: Callable[[], Split],
    parts: tuple[str, str] = ("images", "labels"),
) -> Split:
    """The two arrays that `make` returned for these `facts`, the first memory-mapped; made if missing or broken.

    A cache entry is a folder named after `name` and a hash of `facts` with a file for each of `parts` and their checksums.
    It is written under another name and renamed when complete, so half an entry is never read.
    """
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    entry = cache_dir() / f"{name}-{digest}"
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
        entry.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=entry.parent, prefix=f".{name}-"))
        try:
            checksums = {part: _checksum(array) for part, array in zip(parts, arrays, strict=True)}
            for part, array in zip(parts, arrays, strict=True):
                np.save(scratch / f"{part}.npy", array, allow_pickle=False)
            (scratch / "checksums.json").write_text(json.dumps(checksums))
            scratch.chmod(0o755)
            try:
                scratch.rename(entry)
            except OSError:
                if not entry.exists():  # else another process was first, with the same data
                    raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
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
