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

from nin_jax.data.source import Batch
from nin_jax.devices.mesh import replicate, replicated_like, shard_of_batch
from nin_jax.devices.replicas import steps_per_dispatch

ROW = 128  # numbers: a row of a TPU's memory tiles


class Arrays(NamedTuple):
    """A split: `image` uint8 `[N, R]`, `label` int32 `[N]` or `[N, K]`; in training also the epoch's `order`, int32 `[N]`.

    Images are flat, with zeros after their H * W * C numbers up to R, a multiple of `ROW`, so that a batch can be gathered
    from them as they lie: a TPU would first copy all of `[N, H, W, C]`, or of MNIST's `[N, 784]`.
    """

    image: jax.Array
    label: jax.Array
    order: Any = None


class Shuffled:
    """A `TrainSource` that lies on every device, in a new order each epoch.

    Args:
      arrays: the split, replicated, without an order.
      shape: (height, width, channels) of an image.
      batch_size, seed: of the run.
      mesh: the devices.
    """

    split = False

    def __init__(self, arrays: Arrays, shape: tuple[int, int, int], batch_size: int, seed: int, mesh: Mesh):
        self.examples, self.batch_size, self.seed, self.mesh = arrays.label.shape[0], batch_size, seed, mesh
        self.shape = shape
        self.updates_per_dispatch = steps_per_dispatch()
        self.epoch = -1
        order = jax.ShapeDtypeStruct((self.examples,), np.int32)
        self.like = arrays._replace(order=replicated_like(order, mesh))

    def start(self, step: int) -> None:
        """Draws the order of the epoch of update `step`."""
        if (epoch := step // (self.examples // self.batch_size)) != self.epoch:
            order = epoch_order(self.seed, epoch, self.examples)
            self.epoch, self.like = epoch, self.like._replace(order=replicate(order, self.mesh))

    def at(self, step: int) -> Arrays:
        """The whole split, with the order of the epoch of update `step`."""
        self.start(step)
        return self.like

    def draw(self, data: Arrays, step: jax.Array) -> Batch:
        """A replica's part of the batch of update `step`."""
        rows = shard_of_batch(batch_indices(data.order, step, self.batch_size))
        return Batch(_images(data, rows, self.shape), data.label[rows])

    def close(self) -> None:
        """Nothing is open."""


class InOrder:
    """An `EvalSource` that lies on every device.

    Args:
      arrays: the split, replicated.
      shape: (height, width, channels) of an image.
      batch_size: images of a batch, over all devices.
      mirrored: whether the mirror image of each is seen too.
    """

    split, exact = False, True

    def __init__(self, arrays: Arrays, shape: tuple[int, int, int], batch_size: int, *, mirrored: bool = False):
        self.shape, self.mirrored = shape, mirrored
        self.like, self.examples, self.batch_size = arrays, arrays.label.shape[0], batch_size
        self.batches = -(-self.examples // batch_size)
        dispatches = -(-self.batches // steps_per_dispatch())
        self.batches_per_dispatch = -(-self.batches // dispatches)

    def __iter__(self) -> Generator[Arrays]:
        """The same arrays for every dispatch."""
        for _ in range(0, self.batches, self.batches_per_dispatch):
            yield self.like

    def draw(self, data: Arrays, number: jax.Array) -> Batch:
        """A replica's part of batch `number`, one view of each image."""
        index, weight = eval_indices(number, data.label.shape[0], self.batch_size)
        index, weight = shard_of_batch(index), shard_of_batch(weight)
        return Batch(_images(data, index, self.shape)[:, None], data.label[index], weight)


def row(shape: tuple[int, int, int]) -> int:
    """How many numbers `Arrays` has of an image."""
    return -(-math.prod(shape) // ROW) * ROW


def flat(images: np.ndarray) -> np.ndarray:
    """Images uint8 `[N, H, W, C]` as `Arrays` has them; a copy only where zeros are needed."""
    rows = images.reshape(len(images), -1)
    more = row(images.shape[1:]) - rows.shape[1]
    return np.pad(rows, ((0, 0), (0, more))) if more else rows


def _images(data: Arrays, rows: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    """Some images of a split, uint8 `[B, H, W, C]`."""
    return data.image[rows][:, : math.prod(shape)].reshape(-1, *shape)


@functools.lru_cache(2)
def epoch_order(seed: int, epoch: int, examples: int) -> np.ndarray:
    """The order of an epoch, int32 `[examples]`: a permutation drawn from (seed, epoch).

    Drawn by the host: XLA takes two seconds to compile a sort for a CPU, and 30 ms to shuffle 50,000.
    """
    return np.random.default_rng((seed, epoch)).permutation(examples).astype(np.int32)


def batch_indices(order: jax.Array, step: jax.Array, batch_size: int) -> jax.Array:
    """Indices of the batch of update `step` (0 is the first) within its epoch's order, int32 `[batch_size]`.

    An epoch has examples // batch_size batches; the remaining examples are left out of it.
    """
    place = step % (order.shape[0] // batch_size)
    return jax.lax.dynamic_slice_in_dim(order, place * batch_size, batch_size)


def even_batches(examples: int, batch_size: int, devices: int) -> int:
    """The size of an evaluation's batches: as few as possible, all equal, of at most `batch_size`, with little padding.

    Returns a multiple of `devices`, and of 8 for each device if `batch_size` allows it, so that
    `layers.cpu.pieces` can take some images at a time.
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
