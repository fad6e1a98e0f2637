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


def cached(name: str, facts: Sequence[Any], make: Callable[[], Split]) -> Split:
    """Returns what `make` made for the same `facts`, memory-mapped; calls it if there is none, or a broken one.

    A cache entry is a folder named after `name` and a hash of `facts` with images.npy, labels.npy and their checksums. It
    is written under another name and renamed when complete, so a half-written one is never read.
    """
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    entry = cache_dir() / f"{name}-{digest}"
    if entry.exists():
        try:
            return _read(entry)
        except ExitError:  # a signal may arrive here too
            raise
        except Exception as error:  # NumPy raises anything on a damaged file
            say(f"cached data set {entry} is broken ({one_line(error)}): decoding it again")
            shutil.rmtree(entry, ignore_errors=True)
    images, labels = make()
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=entry.parent, prefix=f".{name}-"))
        try:
            np.save(scratch / "images.npy", images, allow_pickle=False)
            np.save(scratch / "labels.npy", labels, allow_pickle=False)
            checksums = {"images": _checksum(images), "labels": _checksum(labels)}
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
        return _read(entry)
    except ExitError:
        raise
    except Exception:  # another process found a broken entry and is just removing this one in its place
        return images, labels


def _read(entry: Path) -> Split:
    images, labels = (
        np.load(entry / f"{part}.npy", mmap_mode="r", allow_pickle=False) for part in ("images", "labels")
    )
    checksums = json.loads((entry / "checksums.json").read_text())
    for part, array in (("images", images), ("labels", labels)):
        if _checksum(array) != checksums[part]:
            raise ValueError(f"{part}.npy: checksum differs")
    return images, np.array(labels)


def _checksum(array: np.ndarray) -> str:
    """dtype, shape and CRC-32: a flipped bit in the header of an .npy file shows too."""
    return f"{array.dtype} {array.shape} {zlib.crc32(np.ascontiguousarray(array).data):08x}"
