"""What training and evaluation need from a split: batches on the devices. `memory` and `stream` have the two kinds."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple, Protocol

import jax


class Batch(NamedTuple):
    """A replica's part of a batch.

    Attributes:
      image: uint8 `[B, H, W, C]`; in an evaluation `[B, V, H, W, C]`, V views of each image.
      label: int32 `[B]`, or `[B, K]` where an image may have several.
      weight: in an evaluation, float32 `[B]`: 1, or 0 for padding.
    """

    image: Any  # arrays of the host or of the devices, or their shapes
    label: Any
    weight: Any = None


class TrainSource(Protocol):
    """The training split. The batch of update k (the first is 0) is a function of the run's seed and k alone.

    Attributes:
      examples: images of the split; an epoch has `examples // batch_size` updates.
      like: the shapes of what `at` returns, with shardings.
      split: whether that is split over the replicas (`devices.mesh.share_out`); otherwise every replica has all of it.
      updates_per_dispatch: the most updates that one `at` serves.
    """

    examples: int
    like: Any
    split: bool
    updates_per_dispatch: int

    def start(self, step: int) -> None:
        """Begins to prepare the batch of update `step` in the background."""
        ...

    def at(self, step: int) -> Any:
        """Arrays on the devices that update `step` and the following ones of its epoch draw their batches from."""
        ...

    def draw(self, data: Any, step: jax.Array) -> Batch:
        """Traced, on a replica: its part of the batch of update `step`. `data` is what `at` returned."""
        ...

    def close(self) -> None:
        """Ends threads and processes."""
        ...


class EvalSource(Protocol):
    """A split that is evaluated, every image once. Iterating yields what each dispatch draws its batches from.

    Attributes:
      examples: images of the split.
      batches: number of batches.
      like: the shapes of the first dispatch's data, with shardings.
      split: as of `TrainSource`.
      batches_per_dispatch: how many batches a dispatch draws.
      mirrored: whether the mirror image of each view is seen too.
      exact: whether every image counts; otherwise some may be left out because they cannot be read.
    """

    examples: int
    batches: int
    like: Any
    split: bool
    batches_per_dispatch: int
    mirrored: bool
    exact: bool

    def __iter__(self) -> Generator[Any]: ...

    def draw(self, data: Any, number: jax.Array) -> Batch:
        """Traced, on a replica: its part of batch `number` of the split; past the last batch all weights are 0."""
        ...
