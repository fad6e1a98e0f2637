"""Writing to storage that falters: a file is there whole or as it was before, and an error that may pass is tried again."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from nin_jax.errors import StorageFailed, one_line

T = TypeVar("T")

RETRY_AFTER = (0.5, 2.0, 8.0)  # seconds between the attempts
FOR_GOOD = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
    *(errno.ENAMETOOLONG, errno.EFBIG, errno.ELOOP),
}


def local_path(text: str) -> str:
    """The text of a path. Raises `ValueError` for "gs://..." and the like, which would be a local folder named "gs:"."""
    scheme, found, _ = text.partition("://")
    if found and "/" not in scheme:
        raise ValueError(f"{scheme}:// is not supported; name a local directory, or mount the storage as one")
    return text


@contextlib.contextmanager
def lock(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Holds the lock of a file, which is made if it is not there, while it is entered.

    It is the kernel's, so it goes with the process however that ends. Raises `BlockingIOError` if another process holds it,
    unless this one is to `wait`.
    """
    # Nothing behind a link is touched; and a lock needs no content.
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def retry(attempt: Callable[[], T], may_pass: Callable[[Exception], bool]) -> T:
    """`attempt()`, again after each pause of `RETRY_AFTER` while it raises an error that may pass; then the last one is raised."""
    for pause in RETRY_AFTER:
        try:
            return attempt()
        except Exception as error:
            if not may_pass(error):
                raise
            time.sleep(pause)
    return attempt()


def persist(what: str, write: Callable[[], T]) -> T:
    """`write()`, again after each pause of `RETRY_AFTER` while it raises an `OSError` that may pass.

    A full disk, a quota and a network file system that does not answer may; a missing right or folder does not. Raises
    `StorageFailed`, which names `what`.
    """
    try:
        return retry(write, lambda error: isinstance(error, OSError) and error.errno not in FOR_GOOD)
    except OSError as error:
        raise StorageFailed(f"cannot write {what}: {one_line(error)}") from error


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file so that it is there whole or not at all. Raises `StorageFailed`."""
    write_whole(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file so that it is there whole, or as it was before. Raises `StorageFailed`."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")

    def write() -> None:
        try:
            with open(scratch, "wb") as f:
                f.write(content.encode() if isinstance(content, str) else content)
                f.flush()
                os.fsync(f.fileno())
            scratch.replace(path)
        finally:
            with contextlib.suppress(OSError):
                scratch.unlink()  # half a file would keep a full disk full

    persist(str(path), write)
