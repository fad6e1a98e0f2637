"""The mesh of devices, and how arrays are placed on it."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from nin_jax.errors import UserError, one_line

AXIS = "data"  # the name of the one mesh axis, which batches are split over

# JAX's switches with which a run would be another one, or none at all: name, values that work, and why no others do.
SWITCHES = (
    ("jax_disable_jit", (False,), "updates and evaluations are compiled"),
    ("jax_default_prng_impl", ("threefry2x32",), "the numbers of a seed are drawn by threefry2x32"),
    ("jax_threefry_partitionable", (True,), "the numbers of a seed must not depend on the devices"),
    ("jax_random_seed_offset", (0,), "a run's only seed is that of its config"),
    ("jax_transfer_guard", (None, "allow", "log", "log_explicit"), "data and results go to the devices and back"),
)


def backend() -> str:
    """The kind of JAX's devices: "cpu", "gpu", "tpu". Raises `UserError` where it finds none, as with JAX_PLATFORMS=cuda without CUDA."""
    try:
        return jax.default_backend()
    except (RuntimeError, AssertionError) as error:
        asked = os.environ.get("JAX_PLATFORMS", "")
        why = f": {one_line(error)[:300]}" if str(error) else ""
        raise UserError(f"JAX_PLATFORMS={asked}: JAX finds no such device here{why}; unset it, or name cpu") from error


def make_mesh() -> Mesh:
    """All devices in one row: every replica holds the whole state and its share of each batch."""
    backend()
    return jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))


@contextlib.contextmanager
def compiled_in_32_bits() -> Iterator[None]:
    """JAX's 64-bit mode (JAX_ENABLE_X64) is off in this thread while entered: states and checkpoints are of 32 bits.

    Raises `UserError` for a value of a switch that is not that of `SWITCHES`.
    """
    for name, good, why in SWITCHES:
        if (value := getattr(jax.config, name)) not in good:
            shown = int(value) if isinstance(value, bool) else value
            raise UserError(f"{name.upper()}={shown} ({name}): {why}; unset it")
    with jax.enable_x64(False):
        yield


def check_batch(batch_size: int, mesh: Mesh, accumulate: int) -> None:
    """Raises `UserError` unless every device gets the same number of images, in `accumulate` equal parts."""
    n = mesh.size * accumulate
    if batch_size % n:
        near = max(n, round(batch_size / n) * n)
        parts = f" in accumulate={accumulate} parts each" if accumulate > 1 else ""
        raise UserError(
            f"batch_size={batch_size} cannot be shared by {mesh.size} devices{parts}; the nearest that can is {near}"
        )


def check_precision(precision: str, devices: Sequence[Any]) -> None:
    """Raises `UserError` if the hardware has no bfloat16 (NVIDIA GPUs before Ampere)."""
    for device in devices:
        capability = str(getattr(device, "compute_capability", ""))
        if precision == "bfloat16" and re.fullmatch(r"\d+\.\d+", capability) and float(capability) < 8.0:
            raise UserError(
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
    """The shapes of a tree, with shardings that put each array on every device."""
    sharding = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def rows_here(batch_size: int, mesh: Mesh) -> np.ndarray:
    """The indices, in the global batch, of the examples that this process' devices have, in their order."""
    rows = np.arange(batch_size).reshape(mesh.size, -1)
    here = [d.process_index == jax.process_index() for d in mesh.devices.flat]
    return rows[here].reshape(-1)


def share_out(tree: Any, mesh: Mesh) -> Any:
    """Puts on each device its share of a batch.

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
    """The shapes that `share_out` returns for arrays of these shapes `[global batch, ...]`."""
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))

    def like(a: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        shape = mesh.size, a.shape[0] // mesh.size, *a.shape[1:]
        return jax.ShapeDtypeStruct(shape, a.dtype, sharding=sharding)

    return jax.tree.map(like, tree)


def shard_of_batch(indices: jax.Array) -> jax.Array:
    """Inside a replica: its own part of a `[global batch]` array."""
    size = indices.shape[0] // jax.lax.axis_size(AXIS)
    return jax.lax.dynamic_slice_in_dim(indices, jax.lax.axis_index(AXIS) * size, size)


def host(tree: Any) -> Any:
    """Waits for the arrays of a tree and returns them as NumPy arrays."""
    return jax.tree.map(np.asarray, jax.device_get(tree))
