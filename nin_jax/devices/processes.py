"""The only file that knows other processes: how they find each other, what they agree on, who writes.

All processes of a run do the same things in the same order, each on its own devices; the first one alone writes, and
reads what was written, and the others get it from there. So they cannot disagree, and one directory is enough.
"""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import itertools
import json
import os
import re
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import distributed

from nin_jax import errors
from nin_jax.console import console
from nin_jax.devices.mesh import host
from nin_jax.errors import ExitError, StorageFailed, UserError, one_line

T = TypeVar("T")

HEARTBEAT_SECONDS = 60  # a process that has not been heard of for so long counts as dead, and all end
SHUTDOWN_SECONDS = 120  # the longest wait of a process that is done for the others
PATIENCE_MS = 3_600_000  # for the first process, which may have a data set to decode or preprocessing to fit


def join() -> None:
    """Makes this process one of several, if it was started as one; to be called before anything touches a device.

    The others are found through JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID where they are set
    (launch/local.py and launch/kubernetes set them), and by JAX itself under srun, mpirun and on TPU VMs. From then on
    SIGTERM to any of them is known to all (`stop_requested`), and only the first one talks.
    """
    wanted = _peers()
    if wanted is None:
        return
    try:
        jax.distributed.initialize(
            **wanted, heartbeat_timeout_seconds=HEARTBEAT_SECONDS, shutdown_timeout_seconds=SHUTDOWN_SECONDS
        )
    except ValueError:  # a machine with a TPU that is not part of a cluster
        if wanted:
            raise
        return
    except RuntimeError as error:
        raise UserError(f"the processes of this run have not found each other: {one_line(error)[:300]}") from error
    console.quiet = jax.process_index() > 0


def _peers() -> dict[str, Any] | None:
    """Arguments of `jax.distributed.initialize`, empty where it finds them itself; None for a process of its own."""
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = {name: os.environ[name] for name in names if os.environ.get(name)}
    if given:
        try:
            address, processes, number = given[names[0]], int(given[names[1]]), int(given[names[2]])
        except (KeyError, ValueError) as error:
            raise UserError(f"{', '.join(names)} go together, the last two as numbers; set are {given}") from error
        if not 0 <= number < processes:
            raise UserError(f"JAX_PROCESS_ID={number}: must be from 0 to JAX_NUM_PROCESSES - 1 = {processes - 1}")
        return {
            "coordinator_address": address,
            "num_processes": processes,
            "process_id": number,
            "cluster_detection_method": "deactivate",  # else one that is there besides says which devices to take
        }
    srun = "SLURM_STEP_NODELIST" in os.environ and int(os.environ.get("SLURM_NTASKS", 1)) > 1
    mpirun = int(os.environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1
    tpu = importlib.util.find_spec("libtpu") and (glob.glob("/dev/accel*") or glob.glob("/dev/vfio/*"))
    return {} if srun or mpirun or tpu else None


def leave() -> None:
    """Parts from the other processes, when they are done too; for a process of its own, nothing."""
    with contextlib.suppress(RuntimeError):  # one of them is gone without a word; this one has said what it had to
        jax.distributed.shutdown()


def peer_is_gone(error: BaseException) -> bool:
    """Whether an error says that another process of the run has gone without a word (sums over a CPU's Gloo or NCCL)."""
    return jax.distributed.is_initialized() and bool(
        re.search(r"Gloo|NCCL|Connection (closed|reset|refused)|[Cc]oordination|heartbeat", str(error))
    )


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def stop_is_shared() -> bool:
    """Whether JAX looks after SIGTERM, so that `stop_requested` is what tells of it."""
    return jax.distributed.is_initialized()


_questions = itertools.count(1)


def stop_requested() -> bool:
    """Whether a process of the run has got SIGTERM: true for all of them from the very same question on.

    All have to ask equally often, in the same places. Asking takes less than a microsecond.
    """
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(next(_questions))


_agreements = itertools.count(1)


def _service() -> Any:
    """JAX's coordination service, where processes leave each other notes and wait for each other, without a device.

    What JAX offers in public goes through the devices, and on a CPU fails where one process is half a minute late.
    """
    return distributed.global_state.client


def from_first(f: Callable[[], T]) -> T:
    """What `f` returns on the first process, on all of them; nowhere else is it called.

    With several processes it is a JSON value, and a known ending that `f` raises is raised on all of them.
    """
    if jax.process_count() == 1:
        return f()
    name = f"nin_jax/{next(_agreements)}"
    if not is_first():
        news = json.loads(_service().blocking_key_value_get(name, PATIENCE_MS))
        if "failed" in news:
            raise RuntimeError(f"the first process has failed: {news['failed']}")
        if "ending" in news:
            raise getattr(errors, news["ending"])(news["why"])
        return news["value"]
    news = {}
    try:
        value = f()
        news = {"value": value}
    except ExitError as ending:
        news = {"ending": type(ending).__name__, "why": str(ending)}
        raise
    except Exception as error:
        news = {"failed": one_line(error)}
        raise
    finally:
        _service().key_value_set(name, json.dumps(news))
    return value


def meet() -> None:
    """Returns when all processes have come here. What goes through devices next finds nobody late."""
    if jax.process_count() > 1:
        _service().wait_at_barrier(f"nin_jax/{next(_agreements)}", PATIENCE_MS)


def arrays_from_first(f: Callable[[], list[dict[str, np.ndarray]]]) -> list[dict[str, np.ndarray]]:
    """What `f` returns on the first process, on all of them, bit for bit; nowhere else is it called."""
    if jax.process_count() == 1:
        return f()
    made: list[dict[str, np.ndarray]] = []

    def kinds() -> list[dict[str, list[Any]]]:
        made.extend(f())
        return [{name: [str(a.dtype), *a.shape] for name, a in one.items()} for one in made]

    shapes = from_first(kinds)
    return _broadcast(made or [{name: np.empty(shape, kind) for name, (kind, *shape) in one.items()} for one in shapes])


def _broadcast(tree: Any) -> Any:
    from jax.experimental import multihost_utils

    meet()
    leaves, structure = jax.tree.flatten(tree)
    # As bytes: what JAX does is add up, and that would make 0.0 of -0.0.
    sent = multihost_utils.broadcast_one_to_all([np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in leaves])
    got = [np.asarray(b).view(x.dtype).reshape(x.shape) for b, x in zip(sent, leaves, strict=True)]
    return jax.tree.unflatten(structure, got)


def placed_like(tree: Any, like: Any) -> Any:
    """The first process's tree of arrays, where `like`, a tree of equal shapes with shardings, says, on all processes.

    What the others give is not looked at.
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
    if not seen:
        _service().key_value_set(f"nin_jax/blind/{jax.process_index()}", socket.gethostname())
    meet()
    blind = _service().key_value_dir_get("nin_jax/blind/")
    if is_first():
        with contextlib.suppress(OSError):
            (directory / name).unlink()
    if blind:
        raise UserError(
            f"--workdir={directory} is not the same directory for all processes: {blind[0][1]} does not see what the "
            "first process writes there; choose one on a file system that they share"
        )


def to_store(tree: Any) -> Any:
    """A tree of arrays, or of their shapes, as what reads and writes checkpoints takes it.

    With one process as it is. With several only the first one stores, and arrays that lie on devices of others too are
    nothing that one process may store: they, and the shapes of what is read, become NumPy's.
    """
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(lambda x: np.asarray(x) if isinstance(x, jax.Array) else np.empty(x.shape, x.dtype), tree)
