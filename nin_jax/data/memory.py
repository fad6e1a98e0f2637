"""A data set that fits in memory: all of it lies on every device, and batch k is a function of (seed, k)."""

from __future__ import annotations

import functools
import math
from collections.abc import Generator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from nin_jax.devices.mesh import replicate, replicated_like
from nin_jax.devices.replicas import steps_per_dispatch


class Arrays(NamedTuple):
    """A split: `image` uint8 `[N, H, W, C]`, `label` int32 `[N]`; in training `order`, that of the epoch, int32 `[N]`."""

    image: jax.Array
    label: jax.Array
    order: Any = None


class Batch(NamedTuple):
    """A replica's share of a batch that was put together before the step, or of one that the step drew from `Arrays`.

    Attributes:
      image: uint8 `[B, H, W, C]`; of an evaluation `[B, V, H, W, C]`, the views of each picture.
      label: int32 `[B]`.
      weight: of an evaluation, float32 `[B]`: 0 where there is no example, else 1.
    """

    image: Any  # arrays of the host or of the devices, or their shapes
    label: Any
    weight: Any = None


class Resident:
    """How a split that lies on every device is gone through, in training and in evaluation.

    Attributes:
      batch_size: pictures of a batch, over all devices.
      examples: how many there are.
      like: what a dispatch is made from, or its shapes.
      split: whether that is split over the replicas (`compile_replicas`).
      mirrored: whether an evaluation sees each view's mirror image too.
      exact: whether each example counts; else some may be left out in an evaluation.
    """

    mirrored, exact, split = False, True, False

    def __init__(self, arrays: Arrays, batch_size: int):
        self.like, self.examples, self.batch_size = arrays, arrays.label.shape[0], batch_size
        self.batches, self.updates = -(-self.examples // batch_size), self.examples // batch_size

    def dispatch(self, steps: int) -> int:
        """How many updates one dispatch holds, of an event every `steps` updates."""
        return steps_per_dispatch(steps)

    def __iter__(self) -> Generator[tuple[Arrays, int, int]]:
        """For each dispatch of an evaluation what it is made from, number of its first batch, and how many it has."""
        length = steps_per_dispatch(self.batches)
        for first in range(0, self.batches, length):
            yield self.like, first, length

    def close(self) -> None:
        """Nothing is open."""


class Shuffled(Resident):
    """A split that lies on every device, in training: in another order in every epoch.

    Args:
      arrays: without order.
      batch_size, seed: of the run.
      mesh: the devices.
    """

    def __init__(self, arrays: Arrays, batch_size: int, seed: int, mesh: Mesh):
        super().__init__(arrays, batch_size)
        self.seed, self.mesh, self.epoch = seed, mesh, -1
        order = jax.ShapeDtypeStruct((self.examples,), np.int32)
        self.like = arrays._replace(order=replicated_like(order, mesh))

    def start(self, step: int) -> None:
        """Draws the order of the epoch that update `step` belongs to."""
        if (epoch := step // self.updates) != self.epoch:
            order = epoch_order(self.seed, epoch, self.examples)
            self.epoch, self.like = epoch, self.like._replace(order=replicate(order, self.mesh))

    def at(self, step: int) -> Arrays:
        """What update `step` and those after it in its epoch are made from: the whole split, of which they draw batches."""
        self.start(step)
        return self.like


@functools.lru_cache(2)
def epoch_order(seed: int, epoch: int, examples: int) -> np.ndarray:
    """The order of an epoch, int32 `[examples]`: a permutation drawn from (seed, epoch).

    By the host: XLA takes two seconds to compile a sort for a CPU, and 30 ms to shuffle 50,000.
    """
    return np.random.default_rng((seed, epoch)).permutation(examples).astype(np.int32)


def batch_indices(order: jax.Array, step: jax.Array, batch_size: int) -> jax.Array:
    """Indices of the batch of update `step` (0 is the first) within its epoch's order, int32 `[batch_size]`.

    An epoch has examples // batch_size batches; what is left over waits for a later epoch's order.
    """
    place = step % (order.shape[0] // batch_size)
    return jax.lax.dynamic_slice_in_dim(order, place * batch_size, batch_size)


def even_batches(examples: int, batch_size: int, devices: int) -> int:
    """Size of an evaluation's batches: as few as can be of at most `batch_size`, all as large, so that few places are empty.

    Returns a multiple of `devices`, and where `batch_size` allows it of 8 for each, so that a few pictures at a time can be a
    part of them (`layers.cpu.pieces`); at least `devices`.
    """
    most = max(1, batch_size // devices)
    unit = 8 if most >= 8 else 1
    most -= most % unit
    batches = math.ceil(examples / (most * devices))
    return math.ceil(examples / (batches * devices * unit)) * unit * devices


def eval_indices(batch: jax.Array, examples: int, batch_size: int) -> tuple[jax.Array, jax.Array]:
    """Indices and weights of an evaluation batch: every example exactly once, in order.

    Returns:
      int32 `[batch_size]` and float32 `[batch_size]`; past the end the index is the last one and the weight 0.
    """
    index = batch * batch_size + jnp.arange(batch_size)
    return jnp.minimum(index, examples - 1), (index < examples).astype(jnp.float32)
