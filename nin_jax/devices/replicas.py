"""A step mapped over the replicas and compiled; how many steps one dispatch holds."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import ShapedArray
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nin_jax.devices.mesh import AXIS


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
      mesh: from `make_mesh()`.
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


def steps_per_dispatch(steps: int) -> int:
    """How many steps to scan in one dispatch, of an event every `steps` steps. Depends on nothing else but the device kind.

    An accelerator's step is short, so dispatching each would dominate: up to 100 are scanned, as evenly as possible.
    On a CPU a step may take a second, and signals and progress are looked at after each.
    """
    if jax.default_backend() == "cpu":
        return 1
    return -(-steps // -(-steps // 100))
