"""The only file that knows of other processes: how they find each other, what they agree on, who writes.

All processes of a run do the same things in the same order, each on its own devices. Only the first one writes, reads
what was written, and sends it to the others. So they cannot disagree, and one directory is enough.
"""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import json
import math
import os
import re
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from nin_jax import errors
from nin_jax.console import console, fail, say
from nin_jax.devices.mesh import host
from nin_jax.errors import ExitError, StorageFailed, UserError, one_line

T = TypeVar("T")

HEARTBEAT_SECONDS = 60  # a process that has been silent for so long counts as dead, and all end
SHUTDOWN_SECONDS = 120  # the longest wait of a process that is done for the others
RENDEZVOUS_SECONDS = 300  # the longest wait for all processes at the start; the environment may say otherwise
NAMES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")  # of the environment, for `join`
FIRST_WORDS = 256  # uint32 of a message that are sent at once; a longer one takes a second broadcast


def join() -> None:
    """Makes this process one of several, if it was started as one. Call it before anything touches a device.

    The others are found through JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID where they are set
    (launch/local.py and launch/kubernetes set them), and by JAX itself under srun, mpirun and on TPU VMs. From then on
    SIGTERM to any of them is known to all (`stop_requested`), and only the first one talks.

    Raises `UserError`. Where the others do not come within RENDEZVOUS_SECONDS (NIN_JAX_RENDEZVOUS_SECONDS in the environment),
    the process ends with a line and the exit code of that: JAX cannot be called back from its wait.
    """
    wanted = _peers()
    if wanted is None:
        return
    try:
        _initialize(wanted)
    except (RuntimeError, ValueError) as error:
        if isinstance(error, ValueError) and not wanted and not _launched():
            return  # a machine with a TPU, outside a cluster
        raise UserError(
            f"the processes of this run have not found each other: {one_line(error)[:300]}; where JAX does not know what started "
            f"them, set {', '.join(NAMES)}"
        ) from error
    console.quiet = jax.distributed.is_initialized() and _index() > 0


def _index() -> int:
    """The number of this process. Raises `UserError` where its devices cannot be reached by the others."""
    try:
        return jax.process_index()
    except RuntimeError as error:
        name = socket.gethostname()
        _resolve(name, "the name of this machine")  # CPUs reach each other by it
        raise UserError(f"the processes of this run cannot reach each other: {one_line(error)[:300]}") from error


def _resolve(name: str, what: str) -> None:
    try:
        socket.getaddrinfo(name, None)
    except OSError as error:
        raise UserError(
            f"{what}, {name!r}, cannot be resolved to an address ({one_line(error)}), so the processes of this run cannot reach "
            "each other; correct it, or add it to /etc/hosts"
        ) from error


def _initialize(wanted: dict[str, Any]) -> None:
    """`jax.distributed.initialize` in a thread, so that a signal is obeyed while this one waits for the others."""
    seconds = _patience()
    done: Future[None] = Future()

    def initialize() -> None:
        try:
            jax.distributed.initialize(
                **wanted,
                initialization_timeout=int(seconds) + 60,  # after it JAX aborts the process
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=SHUTDOWN_SECONDS,
            )
            done.set_result(None)
        except BaseException as error:
            done.set_exception(error)

    with _no_proxies():
        threading.Thread(target=initialize, name="rendezvous", daemon=True).start()
        address = wanted.get("coordinator_address", "the address that the cluster gives")
        for patience in (min(10.0, seconds), seconds - min(10.0, seconds)):
            try:
                return done.result(patience)
            except TimeoutError:
                if done.done():
                    raise
                say(f"waiting for the other processes of this run at {address}, for at most {seconds:g} s")
    fail(
        f"the processes of this run have not found each other at {address} within {seconds:g} s: are all of them started, and is "
        "the address reached from each, without a firewall between?"
    )
    os._exit(UserError.exit_code)


def _patience() -> float:
    text = os.environ.get("NIN_JAX_RENDEZVOUS_SECONDS", str(RENDEZVOUS_SECONDS))
    with contextlib.suppress(ValueError):
        if 0 <= (seconds := float(text)) < math.inf:
            return seconds
    raise UserError(f"NIN_JAX_RENDEZVOUS_SECONDS={text}: must be a number of seconds")


@contextlib.contextmanager
def _no_proxies() -> Iterator[None]:
    """The environment without http_proxy and the like: processes of one run are not reached through a proxy."""
    proxies = {name: os.environ.pop(name) for name in list(os.environ) if name.lower().endswith("_proxy")}
    try:
        yield
    finally:
        os.environ.update(proxies)


def _peers() -> dict[str, Any] | None:
    """Arguments of `jax.distributed.initialize`, empty if it finds them itself; None for a single process."""
    given = {name: os.environ[name] for name in NAMES if os.environ.get(name)}
    if given:
        try:
            address, processes, number = given[NAMES[0]], int(given[NAMES[1]]), int(given[NAMES[2]])
        except (KeyError, ValueError) as error:
            raise UserError(f"{', '.join(NAMES)} go together, the last two as numbers; set are {given}") from error
        if not 0 <= number < processes:
            raise UserError(f"JAX_PROCESS_ID={number}: must be from 0 to JAX_NUM_PROCESSES - 1 = {processes - 1}")
        name, colon, port = address.rpartition(":")
        if not (name and colon and port.isdecimal()):
            raise UserError(f"JAX_COORDINATOR_ADDRESS={address}: must be HOST:PORT")
        _resolve(name.strip("[]"), "the host of JAX_COORDINATOR_ADDRESS")
        return {
            "coordinator_address": address,
            "num_processes": processes,
            "process_id": number,
            "cluster_detection_method": "deactivate",  # otherwise a cluster that is there too would choose the devices
        }
    tpu = importlib.util.find_spec("libtpu") and (glob.glob("/dev/accel*") or glob.glob("/dev/vfio/*"))
    return {} if _launched() or tpu else None


def _launched() -> bool:
    """Whether srun or mpirun started this process as one of several."""
    srun = "SLURM_STEP_NODELIST" in os.environ and int(os.environ.get("SLURM_NTASKS", 1)) > 1
    return srun or int(os.environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1


def leave() -> None:
    """Shuts down `jax.distributed` once every process is done; does nothing for a single process."""
    with contextlib.suppress(RuntimeError):  # one of them died without a word; this one has reported what it had to
        jax.distributed.shutdown()


def peer_is_gone(error: BaseException) -> bool:
    """Whether an error means that another process of the run died without a word (sums over a CPU's Gloo, or NCCL)."""
    return jax.distributed.is_initialized() and bool(
        re.search(r"Gloo|NCCL|Connection (closed|reset|refused)|[Cc]oordination|heartbeat|Devices failed", str(error))
    )


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def stop_is_shared() -> bool:
    """Whether JAX handles SIGTERM, so that `stop_requested` reports it."""
    return jax.distributed.is_initialized()


def stop_requested(question: int) -> bool:
    """Whether a process of the run got SIGTERM: true for all of them from the same question on.

    All have to ask in the same places; `question` counts them from 1. Asking takes less than a microsecond.
    """
    return multihost_utils.reached_preemption_sync_point(question)


def meet() -> None:
    """Waits until all processes are here, however late, so that the next collective finds nobody late.

    On a CPU, a collective fails if one process is half a minute late; this goes through JAX's coordination service.
    """
    if jax.process_count() > 1:
        with multihost_utils.live_devices(jax.devices()):
            pass


def from_first(f: Callable[[], T]) -> T:
    """What `f` returns on the first process, on all of them. Only the first one calls it.

    With several processes it is a JSON value, and an `ExitError` that `f` raises is raised on all of them.
    """
    if jax.process_count() == 1:
        return f()
    if not is_first():
        news = _send(None)
        if "failed" in news:
            raise RuntimeError(f"the first process has failed: {news['failed']}")
        if "ending" in news:
            raise getattr(errors, news["ending"])(news["why"])
        return news["value"]
    try:
        value = f()
    except ExitError as ending:
        _send({"ending": type(ending).__name__, "why": str(ending)})
        raise
    except Exception as error:
        _send({"failed": one_line(error)})
        raise
    _send({"value": value})
    return value


def _send(news: Any) -> Any:
    """The first process's JSON value, on all processes: its length and beginning, and then the rest if there is one."""
    text = json.dumps(news).encode()
    size = 1 << (-(-len(text) // 4) - 1).bit_length()  # few sizes: each is compiled once
    words = np.frombuffer(text.ljust(4 * max(size, FIRST_WORDS)), np.uint32)
    begin = _broadcast([np.append(np.uint32(len(text)), words[:FIRST_WORDS])])[0]
    length, got = int(begin[0]), begin[1:]
    if length > 4 * FIRST_WORDS:
        size = 1 << (-(-length // 4) - 1).bit_length()
        got = _broadcast([words if is_first() else np.empty(size, np.uint32)])[0]
    return json.loads(got.tobytes()[:length])


def _broadcast(tree: Any) -> Any:
    """The first process's tree of arrays, on all processes, bit for bit; all give arrays of the same shapes."""
    meet()
    leaves, structure = jax.tree.flatten(tree)

    def words(x: np.ndarray) -> np.ndarray:  # JAX sends by adding up, and as floats that would make 0.0 of -0.0
        content = np.ascontiguousarray(x).tobytes()
        return np.frombuffer(content.ljust(-(-len(content) // 4) * 4, b"\0"), np.uint32)

    sent = multihost_utils.broadcast_one_to_all([words(x) for x in leaves])
    got = [
        np.frombuffer(np.asarray(w).tobytes()[: x.nbytes], x.dtype).reshape(x.shape)
        for w, x in zip(sent, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, got)


def arrays_from_first(f: Callable[[], list[dict[str, np.ndarray]]]) -> list[dict[str, np.ndarray]]:
    """The arrays that `f` returns on the first process, on all of them, bit for bit. Only the first one calls it."""
    if jax.process_count() == 1:
        return f()
    made: list[dict[str, np.ndarray]] = []

    def kinds() -> list[dict[str, list[Any]]]:
        made.extend(f())
        return [{name: [str(a.dtype), *a.shape] for name, a in one.items()} for one in made]

    shapes = from_first(kinds)
    return _broadcast(made or [{name: np.empty(shape, kind) for name, (kind, *shape) in one.items()} for one in shapes])


def placed_like(tree: Any, like: Any) -> Any:
    """The first process's tree of arrays on all processes, placed as `like`, its shapes with shardings, says.

    What the others pass is ignored.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, jax.tree.map(lambda s: s.sharding, like))
    mine = host(tree) if is_first() else jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
    return jax.tree.map(
        lambda x, s: jax.make_array_from_process_local_data(s.sharding, x, x.shape), _broadcast(mine), like
    )


def check_shared(directory: Path) -> None:
    """Raises `UserError` unless all processes see what the first one writes in a directory."""
    if jax.process_count() == 1:
        return

    def mark() -> str:
        try:
            return tempfile.mkstemp(dir=directory, prefix=".shared-")[1]
        except OSError as error:
            raise StorageFailed(f"--workdir={directory}: {error}") from error

    name = Path(from_first(mark)).name
    patience = time.monotonic() + 10  # of a network file system
    while not (seen := (directory / name).exists()) and time.monotonic() < patience:
        time.sleep(0.1)
    mine = b"" if seen else socket.gethostname().encode()[:64]
    meet()
    blind = [
        bytes(row).strip(b"\0")
        for row in multihost_utils.process_allgather(np.frombuffer(mine.ljust(64, b"\0"), np.uint8))
    ]
    if is_first():
        with contextlib.suppress(OSError):
            (directory / name).unlink()
    if any(blind):
        raise UserError(
            f"--workdir={directory} is not the same directory for all processes: {max(blind).decode()} does not see what the "
            "first process writes there; choose one on a file system that they share"
        )
