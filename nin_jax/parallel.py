"""The only file that knows devices and processes: the mesh, how a step is mapped over it, how many steps one dispatch
holds, and what several processes agree on.

All processes of a run do the same things in the same order, each on its own devices; the first one alone writes, and
reads what was written, and the others get it from there. So they cannot disagree, and one directory is enough.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import glob
import importlib.util
import itertools
import json
import os
import re
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import distributed
from jax.core import ShapedArray
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from nin_jax import errors, report
from nin_jax.errors import Ending, Mistake, StorageFailed

T = TypeVar("T")

AXIS = "data"  # the name of the one mesh axis, which batches are split over
HEARTBEAT_SECONDS = 60  # a process that has not been heard of for so long counts as dead, and all end
SHUTDOWN_SECONDS = 120  # the longest wait of a process that is done for the others
PATIENCE_MS = 3_600_000  # for the first process, which may have a data set to decode or preprocessing to fit


def keep_freed_memory() -> None:
    """Lets memory that was freed stay with the process, where the C library is glibc. To be called before jax starts.

    On a CPU, XLA asks for a step's temporary memory, a gigabyte for CIFAR-10, at every step and frees it after. glibc
    would give it back to the kernel and get it anew page by page, which takes as long as much of the step
    (docs/performance.md has it measured). The process stays as large as it has been at its largest.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(-8, 1)  # M_ARENA_MAX: one heap for all threads, since only the first can grow
        libc.mallopt(-4, 0)  # M_MMAP_MAX: nothing is mapped by itself, to be unmapped when it is freed
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: the heap's end is not given back
        # Room for what is small, in pieces that do not grow together: else it would lie where a step's memory was, which
        # then no longer fits there. Pages that nobody writes to take no memory.
        libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = (
            ctypes.c_void_p,
            [ctypes.c_size_t],
            [ctypes.c_void_p],
        )
        for piece in [(libc.malloc(2**20), libc.malloc(64))[0] for _ in range(256)]:
            libc.free(piece)


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
        raise Mistake(f"the processes of this run have not found each other: {report.one_line(error)[:300]}") from error
    report.console.quiet = jax.process_index() > 0


def _peers() -> dict[str, Any] | None:
    """Arguments of `jax.distributed.initialize`, empty where it finds them itself; None for a process of its own."""
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = {name: os.environ[name] for name in names if os.environ.get(name)}
    if given:
        try:
            address, processes, number = given[names[0]], int(given[names[1]]), int(given[names[2]])
        except (KeyError, ValueError) as error:
            raise Mistake(f"{', '.join(names)} go together, the last two as numbers; set are {given}") from error
        if not 0 <= number < processes:
            raise Mistake(f"JAX_PROCESS_ID={number}: must be from 0 to JAX_NUM_PROCESSES - 1 = {processes - 1}")
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
    except Ending as ending:
        news = {"ending": type(ending).__name__, "why": str(ending)}
        raise
    except Exception as error:
        news = {"failed": report.one_line(error)}
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
    """Raises `Mistake` unless all processes see what the first one writes in a directory."""
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
        raise Mistake(
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


def mesh() -> Mesh:
    """All devices in one row: every replica holds the whole state and its share of each batch."""
    return jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))


def check_batch(batch_size: int, mesh: Mesh, accumulate: int) -> None:
    """Raises `Mistake` unless every device gets the same number of images, in `accumulate` equal parts."""
    n = mesh.size * accumulate
    if batch_size % n:
        near = max(n, round(batch_size / n) * n)
        parts = f" in accumulate={accumulate} parts each" if accumulate > 1 else ""
        raise Mistake(
            f"batch_size={batch_size} cannot be shared by {mesh.size} devices{parts}; the nearest that can is {near}"
        )


def check_precision(precision: str, devices: Sequence[Any]) -> None:
    """Raises `Mistake` where bfloat16 has no hardware behind it (NVIDIA GPUs before Ampere)."""
    for device in devices:
        capability = str(getattr(device, "compute_capability", ""))
        if precision == "bfloat16" and re.fullmatch(r"\d+\.\d+", capability) and float(capability) < 8.0:
            raise Mistake(
                f"precision='bfloat16' is not supported by {device.device_kind} (compute capability {capability}, "
                "8.0 is needed); use precision='float32'"
            )


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts a copy of every array of the tree on every device; each process puts its own on its devices."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    if jax.process_count() == 1:
        return jax.device_put(tree, everywhere)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(everywhere, np.asarray(x), x.shape), tree)


def everywhere(f: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """A compiled function whose results lie on every device. All processes have to call it with the same arguments."""
    return jax.jit(f, out_shardings=NamedSharding(mesh, PartitionSpec()))


def replicated_like(tree: Any, mesh: Mesh) -> Any:
    """The shapes of a tree, saying that each array lies on every device."""
    sharding = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def rows_here(batch_size: int, mesh: Mesh) -> np.ndarray:
    """Which examples of a global batch this process' devices have, as indices in the order in which they are given."""
    rows = np.arange(batch_size).reshape(mesh.size, -1)
    here = [d.process_index == jax.process_index() for d in mesh.devices.flat]
    return rows[here].reshape(-1)


def share_out(tree: Any, mesh: Mesh) -> Any:
    """Puts each device's share of a batch on it.

    Args:
      tree: host arrays `[rows here, ...]`, the rows of `rows_here`.

    Returns:
      arrays `[devices, examples a device, ...]`, which `compile_replicas` hands to a replica without the first axis.
    """
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    here = sum(d.process_index == jax.process_index() for d in mesh.devices.flat)

    def put(a: np.ndarray) -> jax.Array:
        shares = a.reshape(here, -1, *a.shape[1:])
        return jax.make_array_from_process_local_data(sharding, shares, (mesh.size, *shares.shape[1:]))

    return jax.tree.map(put, tree)


def shared_out_like(tree: Any, mesh: Mesh) -> Any:
    """What `share_out` makes of arrays of these shapes `[global batch, ...]`, as shapes."""
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))

    def like(a: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        shape = mesh.size, a.shape[0] // mesh.size, *a.shape[1:]
        return jax.ShapeDtypeStruct(shape, a.dtype, sharding=sharding)

    return jax.tree.map(like, tree)


def _is_shared_out(argument: Any) -> bool:
    specs = [getattr(getattr(a, "sharding", None), "spec", PartitionSpec()) for a in jax.tree.leaves(argument)]
    return PartitionSpec(AXIS) in specs


def compile_replicas(
    f: Callable[..., Any], arguments: Sequence[Any], mesh: Mesh, mapper: str, donate: tuple[int, ...] = ()
) -> Callable[..., Any]:
    """Compiles a per-replica function whose results are the same on every replica.

    Inside, `jax.lax.axis_index(AXIS)` is the replica's number and collectives over `AXIS` join the replicas. State is
    never stacked: arguments and results are whole arrays, replicated. Only of a batch from `share_out` each replica gets
    its own share.

    Args:
      f: function of arrays; what it returns must be equal on all replicas (after `pmean`, `psum`, `all_gather`).
      arguments: arrays (or their shapes) like those it will be called with.
      mesh: from `mesh()`.
      mapper: "pmap" or "shard_map".
      donate: positions of the arguments whose memory the results may take.
    """
    everywhere = PartitionSpec()
    shared = [_is_shared_out(a) for a in arguments]
    if mapper == "shard_map":

        def of_one(*args: Any) -> Any:
            return f(*(jax.tree.map(lambda x: x[0], a) if s else a for a, s in zip(args, shared, strict=True)))

        # check_vma=False: gradients are per replica until the step itself takes their mean, as under pmap.
        specs = tuple(PartitionSpec(AXIS) if s else everywhere for s in shared)
        mapped = jax.shard_map(of_one, mesh=mesh, in_specs=specs, out_specs=everywhere, check_vma=False)
        return jax.jit(mapped, donate_argnums=donate).lower(*arguments).compile()
    # pmap wants one argument that is split, so the replicas' numbers come along.
    mapped = jax.pmap(
        lambda _, *args: f(*args),
        AXIS,
        in_axes=(0, *(0 if s else None for s in shared)),
        out_axes=None,
        devices=list(mesh.devices.flat),
        donate_argnums=tuple(d + 1 for d in donate),
    )
    numbers = np.arange(mesh.size, dtype=np.int32)
    split = NamedSharding(mesh, PartitionSpec(AXIS))
    replicas = jax.make_array_from_callback(numbers.shape, split, lambda index: numbers[index])
    # Called, what pmap makes takes and returns the arrays of one process. What it is compiled to takes those of the run,
    # as shard_map's does; given the shape of its first argument, it leaves all of them as they are.
    shape = ShapedArray(replicas.shape, replicas.dtype)
    return functools.partial(mapped.lower(shape, *arguments).compile(), replicas)


def shard_of_batch(indices: jax.Array) -> jax.Array:
    """Inside a replica: its own part of a `[global batch]` array."""
    size = indices.shape[0] // jax.lax.axis_size(AXIS)
    return jax.lax.dynamic_slice_in_dim(indices, jax.lax.axis_index(AXIS) * size, size)


def steps_per_dispatch(steps: int) -> int:
    """How many steps to scan in one dispatch, of an event every `steps` steps. Depends on nothing else but the device kind.

    An accelerator's step is short, so dispatching each would dominate: up to 100 are scanned, as evenly as possible.
    On a CPU a step may take a second, and signals and progress are looked at after each.
    """
    if jax.default_backend() == "cpu":
        return 1
    return -(-steps // -(-steps // 100))


def runs_ahead() -> bool:
    """Whether to dispatch before the dispatch before is done, so that the device never waits for the host.

    Not on a CPU, where it saves nothing and takes the temporary memory of two steps at a time.
    """
    return jax.default_backend() != "cpu"


def host(tree: Any) -> Any:
    """Waits for the arrays of a tree and returns them as NumPy arrays."""
    return jax.tree.map(np.asarray, jax.device_get(tree))
