"""Maps a function of one replica over all of them and compiles it; and how many steps one dispatch holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import ShapedArray
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nin_jax.devices.mesh import AXIS


class Replicated(NamedTuple):
    """A compiled function of all replicas, called with arrays like those it was compiled for.

    Attributes:
      program: what XLA compiled.
      leading: arrays that the program takes before the caller's.
    """

    program: jax.stages.Compiled
    leading: tuple[jax.Array, ...] = ()

    def __call__(self, *arguments: Any) -> Any:
        return self.program(*self.leading, *arguments)


def compile_replicas(
    f: Callable[..., Any],
    arguments: Sequence[Any],
    mesh: Mesh,
    mapper: str,
    *,
    split: Sequence[bool] = (),
    donate: tuple[int, ...] = (),
) -> Replicated:
    """Compiles a per-replica function whose results are the same on every replica.

    Inside, `jax.lax.axis_index(AXIS)` is the replica's number and collectives over `AXIS` join the replicas. State is
    never stacked: arguments and results are whole arrays, replicated. Only a batch from `share_out` is split: each
    replica gets its own share, without the first axis.

    Args:
      f: function of arrays; what it returns must be equal on all replicas (after `pmean`, `psum`, `all_gather`).
      arguments: arrays (or their shapes, with shardings) like those it will be called with.
      mesh: from `make_mesh()`.
      mapper: "pmap" or "shard_map". Since JAX 0.8 both compile to the same program.
      split: for each argument, whether it is split over the replicas, `[devices, ...]`; by default none is.
      donate: positions of the arguments whose memory the results may take.
    """
    split = tuple(split) or (False,) * len(arguments)
    if len(split) != len(arguments):
        raise ValueError(f"{len(arguments)} arguments, but {len(split)} of split")
    compiled = {"pmap": _pmap, "shard_map": _shard_map}[mapper]
    return compiled(f, arguments, mesh, split, donate)


def _shard_map(
    f: Callable[..., Any], arguments: Sequence[Any], mesh: Mesh, split: tuple[bool, ...], donate: tuple[int, ...]
) -> Replicated:
    def of_one(*args: Any) -> Any:
        return f(*(jax.tree.map(lambda x: x[0], a) if s else a for a, s in zip(args, split, strict=True)))

    # check_vma=False: gradients are per replica until the step itself takes their mean, as under pmap.
    specs = tuple(PartitionSpec(AXIS) if s else PartitionSpec() for s in split)
    mapped = jax.shard_map(of_one, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)
    return Replicated(jax.jit(mapped, donate_argnums=donate).lower(*arguments).compile())


def _pmap(
    f: Callable[..., Any], arguments: Sequence[Any], mesh: Mesh, split: tuple[bool, ...], donate: tuple[int, ...]
) -> Replicated:
    """`jax.pmap` for arrays of the whole run, as `shard_map` takes them.

    A call of what `jax.pmap` returns takes and returns the arrays of one process. The program behind it, a jit of a
    shard_map, does not, so that is what is called. Three things make this work in JAX 0.10 to 0.12:

    * pmap wants an argument that is split, which here need not be any: the replicas' numbers go first.
    * With several processes `lower` leaves its arguments as they are if the first is an abstract value, which
      `ShapeDtypeStruct` is not (jax/_src/pmap.py, host_local_array_to_global_array); else it takes them for one process'.
    * `lower(...).compile()` knows nothing of one process' arrays: JAX says so as a warning, and it is what is wanted.
    """
    mapped = jax.pmap(
        lambda _, *args: f(*args),
        AXIS,
        in_axes=(0, *(0 if s else None for s in split)),
        out_axes=None,
        devices=list(mesh.devices.flat),
        donate_argnums=tuple(d + 1 for d in donate),
    )
    numbers = np.arange(mesh.size, dtype=np.int32)
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    replicas = jax.make_array_from_callback(numbers.shape, sharding, lambda index: numbers[index])
    program = mapped.lower(ShapedArray(replicas.shape, replicas.dtype), *arguments).compile()
    return Replicated(program, (replicas,))


def compile_for_once(lowered: jax.stages.Lowered) -> Callable[..., Any]:
    """Compiles a function that is called once: on a CPU without optimization, which would take longer than it saves."""
    return lowered.compile({"xla_backend_optimization_level": "0"} if jax.default_backend() == "cpu" else None)


def steps_per_dispatch() -> int:
    """How many updates, or batches of an evaluation, one dispatch may hold.

    An update of a small network takes an accelerator about a millisecond, and a dispatch takes some of the host's time,
    so the device loops over a hundred. On a CPU an update may take a second, and signals and progress are checked after
    each.
    """
    return 1 if jax.default_backend() == "cpu" else 100
