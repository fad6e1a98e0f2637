"""The only file that knows devices: the mesh, how a step is mapped over it, how many steps one dispatch holds."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import ShapedArray
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from nin_jax.errors import Mistake

AXIS = "data"  # the name of the one mesh axis, which batches are split over


def reuse_memory() -> None:
    """Lets every step on a CPU work in the memory of the step before. To be called before jax starts.

    On a CPU, XLA asks for a step's temporary memory, a gigabyte for CIFAR-10, at every step and frees it after. glibc
    would give it back to the kernel and get it anew page by page, which takes as long as much of the step
    (docs/performance.md has it measured): where the C library is glibc, it now stays with the process, which is as large
    as it has been at its largest. And a step's results were there up to a millisecond before its memory was free, so
    that the next one often took as much again: now a dispatch returns when all is done.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)
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
        for piece in [(libc.malloc(2**20), libc.malloc(64))[0] for _ in range(1024)]:
            libc.free(piece)


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


def compile_for_once(lowered: jax.stages.Lowered) -> Callable[..., Any]:
    """Compiles what is called one time: on a CPU roughly, since to do it well takes longer than it saves."""
    return lowered.compile({"xla_backend_optimization_level": "0"} if jax.default_backend() == "cpu" else None)


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


def host(tree: Any) -> Any:
    """Waits for the arrays of a tree and returns them as NumPy arrays."""
    return jax.tree.map(np.asarray, jax.device_get(tree))
