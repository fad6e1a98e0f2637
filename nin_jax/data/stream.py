"""A data set that does not fit in memory: pictures of any size, decoded while the network computes.

Batch k is a function of (seed, k), for any number of processes and workers: the order is a permutation of the whole
split drawn from (seed, epoch), example i of the batch is cropped at a place drawn from (seed, k, i), and each process
decodes only the examples of its own devices. So the step is all that a run needs to resume with the very next example.
Only uint8 is transferred to the devices; mirroring and preprocessing are done there.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import gc
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh

from nin_jax.data import memory, views, worker
from nin_jax.data.encoded import Pictures, cut
from nin_jax.data.source import Batch
from nin_jax.data.worker import map_threads
from nin_jax.devices.mesh import rows_here, share_out, shared_out_like
from nin_jax.errors import UserError

DEVICE_AHEAD, HOST_AHEAD = 2, 2  # batches that wait on the devices, and in each process that decodes
CORES_A_PROCESS = 8  # Python's lock lets threads decode on about so many cores


@dataclasses.dataclass(frozen=True)
class Training:
    """Random windows of a split in random order: item k is this process' share of the batch of update k (0: the first).

    Attributes:
      pictures: the split.
      seed, batch_size: of the run.
      rows: the share, as indices in the global batch.
      updates: of the whole run.
      processes: how many share the cores of this host to decode.
    """

    pictures: Pictures
    seed: int
    batch_size: int
    rows: np.ndarray
    updates: int
    processes: int = 1

    def __len__(self) -> int:
        return self.updates

    def indices(self, step: int) -> list[int]:
        """The records of the share. Records beyond an epoch's last whole batch are left out of that epoch."""
        epoch, place = divmod(step, len(self.pictures) // self.batch_size)
        first = place * self.batch_size
        return memory.epoch_order(self.seed, epoch, len(self.pictures))[first + self.rows].tolist()

    def __getitem__(self, step: int) -> Batch:
        uniform = np.random.default_rng((self.seed, int(step))).random((self.batch_size, 2))[self.rows]
        size = self.pictures.size
        images, labels = np.empty((len(self.rows), size, size, 3), np.uint8), np.empty(len(self.rows), np.int32)

        def fill(row: int, index: int) -> None:
            picture, to, labels[row] = self.pictures.usable_from(index)
            images[row] = cut(picture, to, views.random_window(uniform[row], *to, size))

        _on_cores(self.processes, fill, self.indices(int(step)))
        return Batch(images, labels)


class Group(NamedTuple):
    """A batch of pictures to be evaluated: records (-1: none), and how many windows of what size each has."""

    rows: np.ndarray
    windows: int
    height: int
    width: int


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The windows of each picture of a split once: item k is this process' share of the k-th batch.

    Attributes:
      pictures: the split.
      views: name of the protocol.
      groups: the batches.
      rows: the share, for each size of a batch, as indices in the global batch.
      processes: how many share the cores of this host to decode.
    """

    pictures: Pictures
    views: str
    groups: list[Group]
    rows: Mapping[int, np.ndarray]
    processes: int = 1

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, number: int) -> Batch:
        group = self.groups[int(number)]
        records = group.rows[self.rows[len(group.rows)]]
        images = np.zeros((len(records), group.windows, group.height, group.width, 3), np.uint8)
        labels, weight = np.zeros(len(records), np.int32), np.zeros(len(records), np.float32)

        def fill(row: int, index: int) -> None:
            found = self.pictures.usable(index) if index >= 0 else None
            if found is not None:
                picture, to, labels[row] = found
                weight[row] = 1
                for i, window in enumerate(views.windows(self.views, *to, self.pictures.size)):
                    images[row, i] = cut(picture, to, window)

        _on_cores(self.processes, fill, records.tolist())
        return Batch(images, labels, weight)


def plan(pictures: Pictures, protocol: str, batch_size: int, devices: int) -> list[Group]:
    """Groups the pictures of a split whose windows have the same size, as many as fill `batch_size` inputs.

    The number of pictures of a batch is a multiple of `devices`, at least that many.
    """

    def shape(index: int) -> tuple[int, int, int] | None:
        try:
            size = pictures.open(index)[1]
        except UserError as error:
            pictures.leave_out(index, error)
            return None
        return (1, *views.windows(protocol, *views.scaled(*size, pictures.short), pictures.size)[0][2:])

    if protocol == "dense":
        shapes = list(map_threads(shape, range(len(pictures)), len(pictures), f"sizes of {pictures.name}"))
    else:
        windows = len(views.windows(protocol, pictures.short, pictures.short, pictures.size))
        shapes = [(windows, pictures.size, pictures.size)] * len(pictures)
    of_shape: dict[tuple[int, int, int], list[int]] = {}
    for index, found in enumerate(shapes):
        if found:
            of_shape.setdefault(found, []).append(index)
    if not of_shape:
        raise UserError(f"no record of {pictures.name} can be used")
    groups = []
    for (count, height, width), indices in of_shape.items():
        inputs = count * (2 if protocol in views.MIRRORED else 1) * height * width / pictures.size**2
        together = max(1, int(batch_size / inputs) // devices) * devices
        for first in range(0, len(indices), together):
            rows = np.full(together, -1)
            part = indices[first : first + together]
            rows[: len(part)] = part
            groups.append(Group(rows, count, height, width))
    return groups


class Ahead:
    """Batches of `Training` or `Evaluation` from a given one on, decoded and sent to the devices ahead of use."""

    def __init__(self, batches: Training | Evaluation, first: int, mesh: Mesh, workers: int):
        if not flags.FLAGS.is_parsed():  # grain has flags, and reads them even in a program that has parsed none
            flags.FLAGS.mark_as_parsed()
        self.mesh, self.workers = mesh, workers
        source: Any = dataclasses.replace(batches, processes=max(1, workers))
        reading = grain.ReadOptions(num_threads=HOST_AHEAD, prefetch_buffer_size=HOST_AHEAD)
        processes = grain.MultiprocessingOptions(num_workers=workers)
        data = grain.MapDataset.source(source)[first:].to_iter_dataset(reading)
        with worker.shielded():  # the processes are started by threads that this thread or the sender's starts
            self.batches = iter(data.mp_prefetch(processes, worker_init_fn=lambda index, count: worker.begin()))
            self.sender = concurrent.futures.ThreadPoolExecutor(1)
            self.sending = deque(self.sender.submit(self._send) for _ in range(DEVICE_AHEAD))

    def _send(self) -> Batch | None:
        """Puts the next batch on the devices."""
        try:
            batch = next(self.batches, None)
        except RuntimeError as error:
            if "Worker process was terminated" not in str(error):
                raise
            raise UserError(
                f"a process that decodes was killed; if memory ran out, set --config.workers to less than {self.workers}"
            ) from error
        return None if batch is None else share_out(batch, self.mesh)

    def take(self) -> Batch | None:
        """The next batch; None after the last."""
        batch = self.sending.popleft().result()
        self.sending.append(self.sender.submit(self._send))
        return batch

    def close(self) -> None:
        """Ends threads and processes."""
        self.sender.shutdown(cancel_futures=True)
        self.batches.close()
        del self.batches, self.sending
        gc.collect()  # grain's iterators are in cycles, and the last batches of its processes lie in shared memory


@functools.cache
def _threads(count: int) -> concurrent.futures.ThreadPoolExecutor:
    """The threads of this process that decode."""
    return concurrent.futures.ThreadPoolExecutor(count)


def _on_cores(processes: int, f: Callable[[int, int], None], items: Sequence[int]) -> None:
    """`f(i, items[i])` for each i, on this process' part of the cores."""
    threads = max(1, worker.cores() // processes)
    tasks = min(4 * threads, len(items))  # not a task for each: that costs a tenth of decoding a small picture

    def some(first: int) -> None:
        for i in range(first, len(items), tasks):
            f(i, items[i])

    list(_threads(threads).map(some, range(tasks)))


class TrainStream:
    """A `TrainSource`: the batches of a run, one a dispatch.

    Args:
      pictures: the training split.
      mesh: the devices.
      batch_size, seed, epochs: of the run.
      workers: see `workers_here`.
    """

    split, updates_per_dispatch = True, 1

    def __init__(self, pictures: Pictures, mesh: Mesh, batch_size: int, seed: int, epochs: int, workers: int):
        rows = rows_here(batch_size, mesh)
        updates = epochs * (len(pictures) // batch_size)
        self.source, self.mesh, self.workers = Training(pictures, seed, batch_size, rows, updates), mesh, workers
        self.examples, self.step, self.ahead = len(pictures), -1, None
        image = jax.ShapeDtypeStruct((batch_size, pictures.size, pictures.size, 3), np.uint8)
        label = jax.ShapeDtypeStruct((batch_size,), np.int32)
        self.like = shared_out_like(Batch(image, label), mesh)

    def start(self, step: int) -> None:
        """Begins to decode the batch of update `step`, in the background."""
        self.close()
        self.step, self.ahead = step, Ahead(self.source, step, self.mesh, self.workers)

    def at(self, step: int) -> Batch:
        """The batch of update `step`."""
        if step != self.step or self.ahead is None:
            self.start(step)
        assert self.ahead is not None
        self.step += 1
        batch = self.ahead.take()
        assert batch is not None, f"update {step} is after the last"
        return batch

    def draw(self, data: Batch, step: jax.Array) -> Batch:
        """`data` is the batch."""
        del step
        return data

    def close(self) -> None:
        """Ends threads and processes."""
        if self.ahead is not None:
            self.ahead.close()
            self.ahead = None


class EvalStream:
    """An `EvalSource`: every picture of a split once, a batch a dispatch.

    Args:
      pictures: the split.
      mesh: the devices.
      batch_size: inputs of the network at a time; pictures are fewer where each has several views or larger ones.
      protocol: see `views`.
      workers: see `workers_here`.
    """

    split, batches_per_dispatch = True, 1

    def __init__(self, pictures: Pictures, mesh: Mesh, batch_size: int, protocol: str, workers: int):
        groups = plan(pictures, protocol, batch_size, mesh.size)
        rows = {len(g.rows): rows_here(len(g.rows), mesh) for g in groups}
        self.source, self.mesh = Evaluation(pictures, protocol, groups, rows), mesh
        self.workers, self.batches = min(workers, len(groups)), len(groups)
        self.examples, self.mirrored, self.exact = len(pictures), protocol in views.MIRRORED, not pictures.skip
        n, windows, height, width = len(groups[0].rows), *groups[0][1:]
        shapes = ((n, windows, height, width, 3), np.uint8), ((n,), np.int32), ((n,), np.float32)
        self.like = shared_out_like(Batch(*(jax.ShapeDtypeStruct(*s) for s in shapes)), mesh)

    def __iter__(self) -> Generator[Batch]:
        """The batches."""
        ahead = Ahead(self.source, 0, self.mesh, self.workers)
        try:
            while (batch := ahead.take()) is not None:
                yield batch
        finally:
            ahead.close()

    def draw(self, data: Batch, number: jax.Array) -> Batch:
        """`data` is the batch."""
        del number
        return data


def workers_here(wanted: int) -> int:
    """Number of processes that decode; 0: threads of this one. For -1: one for every eight cores, from 16 cores on."""
    if wanted >= 0:
        return wanted
    processes = worker.cores() // CORES_A_PROCESS
    return processes if processes > 1 else 0
