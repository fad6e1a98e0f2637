"""Writing to unreliable storage: a file is complete or as it was before, and errors that may pass are retried."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from nin_jax.errors import Preempted, StorageFailed, UserError, one_line

T = TypeVar("T")

NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, 524}  # the last is Linux's own ENOTSUPP
BEAT_SECONDS, STALE_SECONDS = 5.0, 20.0  # of the file that stands for a lock where there are none
RETRY_AFTER = (0.5, 2.0, 8.0)  # seconds between the attempts
FOR_GOOD = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
    *(errno.ENAMETOOLONG, errno.EFBIG, errno.ELOOP),
}


def local_path(text: str) -> str:
    """The text of a path. Raises `ValueError` for "", and for "gs://..." and the like, which would be a folder named "gs:"."""
    if not text:
        raise ValueError("must name a directory")
    scheme, found, _ = text.partition("://")
    if found and "/" not in scheme:
        raise ValueError(f"{scheme}:// is not supported; name a local directory, or mount the storage as one")
    return text


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path with the folder that its "~" stands for; "~NAME" of nobody stays (pathlib would raise RuntimeError)."""
    return Path(os.path.expanduser(path))


@contextlib.contextmanager
def lock(path: Path, *, wait: bool = False, warn: Callable[[str], None] = lambda line: None) -> Iterator[None]:
    """Holds a lock on a file, which is created if necessary, while entered.

    The kernel holds the lock, so it is released however the process ends. On a file system without locks (Lustre
    without -o flock, NFS without lockd) PATH.owner is made instead, after a warning: see `_owned`. Raises
    `BlockingIOError` if another process holds the lock, unless this one is to `wait`.
    """
    # Nothing behind a link is touched; and a lock needs no content.
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), "w") as file:
        other: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise OSError(error.errno, f"cannot be locked: {error.strerror}", str(path)) from error
            other = _owned(path.with_name(f"{path.name}.owner"), wait)
            warn(
                f"warning: {path.parent} is on a file system without locks ({error.strerror}); a file {path.name}.owner is used"
            )
        with other:
            yield


@contextlib.contextmanager
def _owned(path: Path, wait: bool) -> Iterator[None]:
    """Owns a file that exists as long as its owner does: host, process, a random word, and a count that goes up.

    Whoever finds a file whose count has stood still for `STALE_SECONDS` takes it over. An owner that finds its file
    taken, after it was itself stopped for so long, ends its process at once with exit code 75.
    """
    me = f"{socket.gethostname()} {os.getpid()} {secrets.token_hex(8)}"
    while True:
        try:
            number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            break
        except FileExistsError:
            seen = _owner(path)
            pause = min(0.2, BEAT_SECONDS)
            looks = STALE_SECONDS / pause  # no deadline: while this process was stopped, its owner may have been too
            while (same := _owner(path) == seen) and looks > 0:
                time.sleep(pause)
                looks -= 1
            if same:
                aside = path.with_name(f"{path.name}.{me.split()[-1]}")
                with contextlib.suppress(FileNotFoundError):  # somebody was faster
                    path.rename(aside)
                    aside.unlink() if _owner(aside) == seen else aside.rename(path)
            elif not wait and _owner(path) is not None:
                raise BlockingIOError(errno.EAGAIN, f"{path} is held by {seen}") from None
    done = threading.Event()

    def beat() -> None:
        for count in itertools.count(1):
            if done.wait(BEAT_SECONDS):
                return
            with contextlib.suppress(OSError):
                if not (_owner(path) or "").startswith(me):
                    print(f"nin_jax: {path} was taken over by {_owner(path)}: start again", file=sys.stderr, flush=True)
                    os._exit(Preempted.exit_code)
                write(count)

    def write(count: int) -> None:
        os.pwrite(number, f"{me} {count}".encode(), 0)
        os.fsync(
            number
        )  # NFS would keep it from other machines for half a minute, longer than an owner may stand still

    write(0)
    thread = threading.Thread(target=beat, name="lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        os.close(number)
        if (_owner(path) or "").startswith(me):
            path.unlink()


def _owner(path: Path) -> str | None:
    """What an owner last wrote; None without a file. Reopened each time: network file systems cache open files."""
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return None


def retry(attempt: Callable[[], T], may_pass: Callable[[Exception], bool]) -> T:
    """Calls `attempt()`, again after each pause of `RETRY_AFTER` while its error may pass. Raises the last error."""
    for pause in RETRY_AFTER:
        try:
            return attempt()
        except Exception as error:
            if not may_pass(error):
                raise
            time.sleep(pause)
    return attempt()


def may_pass(error: Exception) -> bool:
    """Whether an `OSError` may pass: a full disk, a quota, a network file system; not a missing permission or file."""
    return isinstance(error, OSError) and error.errno not in FOR_GOOD


def persist(what: str, write: Callable[[], T]) -> T:
    """Calls `write()`, again after each pause of `RETRY_AFTER` while its error `may_pass`.

    Raises `StorageFailed`, naming `what`.
    """
    try:
        return retry(write, may_pass)
    except OSError as error:
        raise StorageFailed(f"cannot write {what}: {one_line(error)}") from error


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file so that it is complete or not there at all. Raises `StorageFailed`."""
    write_whole(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def make_folder(path: Path) -> None:
    """Creates a folder, and those that it is in, where they are not there. Raises `StorageFailed`."""
    persist(str(path), lambda: path.mkdir(parents=True, exist_ok=True))


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file so that it is complete, or as it was before.

    Raises `StorageFailed`, and `UserError` for a folder, a pipe or a device, whose place the file would take.
    """
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "a pipe or a device"
        raise UserError(f"{path} is {kind}, not a file that can be written")
    # Not the process number alone: in two containers that share the folder, both may be process 1.
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(8)}")

    def write() -> None:
        try:
            with open(scratch, "wb") as f:
                f.write(content.encode() if isinstance(content, str) else content)
                f.flush()
                os.fsync(f.fileno())
            scratch.replace(path)
        finally:
            with contextlib.suppress(OSError):
                scratch.unlink()  # half a file would keep the disk full

    persist(str(path), write)
