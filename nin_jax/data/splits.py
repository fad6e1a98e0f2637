"""A data set's facts, its splits, and the syntax of slices of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from nin_jax.console import say
from nin_jax.errors import UserError, nearest, one_line
from nin_jax.registry import Call, Dataset

Split = tuple[np.ndarray, np.ndarray]  # images uint8 [N, H, W, C], labels int32 [N], or [N, K] if `Info.multilabel`


# The label of a record that could not be read. It keeps its place, so that slices keep their meaning.
UNREADABLE = -(2**31)


class Info(NamedTuple):
    """A data set's facts.

    Attributes:
      name: its entry, and its name in TFDS if it comes from there.
      classes: number of classes.
      image_shape: (height, width, channels) of every image.
      splits: number of examples of each split.
      composed: of further splits, which the data set's module makes of these.
      source: its origin.
      version: of the TFDS preparation, or of the rule that makes it.
      class_names: by label; empty if the classes have only numbers.
      streamed: whether it does not fit in memory, so that pictures are decoded while the network computes.
      prepared: whether it has to be prepared in TFDS's layout.
      found: lines printed at the start of a run: what a user's own folder holds, and how its classes match those of a
        run.
      counts: the same in numbers, for the summary.
      multilabel: whether an image may have several labels: int32 `[N, K]`, see `training.tasks.multilabel`.
    """

    name: str
    classes: int
    image_shape: tuple[int, int, int]
    splits: Mapping[str, int]
    source: str
    version: str = "1"
    class_names: tuple[str, ...] = ()
    streamed: bool = False
    prepared: bool = False
    found: tuple[str, ...] = ()
    counts: Mapping[str, int] = MappingProxyType({})
    multilabel: bool = False
    composed: Mapping[str, int] = MappingProxyType({})

    @property
    def names(self) -> tuple[str, ...]:
        """What the classes are called by label: their numbers where they have no names."""
        return self.class_names or tuple(map(str, range(self.classes)))


def facts(dataset: Call[Dataset], data_dir: str | None) -> Info:
    """The facts of a data set, read from its folder if they depend on it."""
    entry: Any = dataset.entry
    return entry.info(data_dir, **dataset.arguments) if hasattr(entry, "info") else entry.INFO


def to_notes(info: Info) -> dict[str, Any]:
    """What a checkpoint notes of the data set that its network was trained on."""
    kept = "name", "classes", "image_shape", "class_names", "streamed", "multilabel"
    return {name: getattr(info, name) for name in kept}


def from_notes(plain: Mapping[str, Any]) -> Info:
    """The facts that a checkpoint notes, without its splits."""
    shape, names = tuple(plain["image_shape"]), tuple(plain["class_names"])
    several = plain.get("multilabel", False)  # older notes do not have it
    info = Info(plain["name"], plain["classes"], shape, {}, "", class_names=names, streamed=plain["streamed"])
    return info._replace(multilabel=several)


def match_classes(data: Info, trained: Info) -> np.ndarray | None:
    """The training label of each label of some data, matched by class name; None if they are the same.

    Classes without names are called by their numbers. Raises `UserError` for a class that the network was not trained on, and
    for unnamed classes that differ in number.
    """
    what = f"dataset {data.name} ({data.source})"
    if not data.class_names and not trained.class_names:
        if data.classes != trained.classes:
            raise UserError(f"{what} has {data.classes} classes; the run was trained on {trained.classes}")
        return None
    mine, theirs = data.names, trained.names
    if unknown := [name for name in mine if name not in theirs]:
        raise UserError(
            f"{what} has classes that the run was not trained on: {', '.join(unknown[:20])}: {nearest(unknown[0], theirs)}"
        )
    if mine == theirs:
        return None
    return np.array([theirs.index(name) for name in mine], np.int32)


def renamed(labels: np.ndarray, to: np.ndarray, info: Info) -> np.ndarray:
    """Labels by the numbers `to` of `match_classes`, of a run on `info`."""
    if labels.ndim == 1:
        return to[labels]
    found = np.full((len(labels), info.classes), -1, np.int32)
    found[:, to] = labels
    return found


def take(split: str, sizes: Mapping[str, int], load: Callable[[str], Split], dataset: str) -> Split:
    """The examples that a TFDS split expression names, such as "train[:10%]+test".

    Args:
      split: the expression.
      sizes: number of examples of each whole split.
      load: returns a whole split by name.
      dataset: for the error messages.
    """
    chosen = []
    for name, first, last in parts(split, sizes, dataset):
        images, labels = load(name)
        chosen.append((images[first:last], labels[first:last]))
    images, labels = chosen[0] if len(chosen) == 1 else map(np.concatenate, zip(*chosen, strict=True))
    return images, labels


def parts(split: str, sizes: Mapping[str, int], dataset: str) -> list[tuple[str, int, int]]:
    """Parses a TFDS split expression: (whole split, first example, one after the last) of each part, in order."""
    if sizes.get(split):  # a name alone; importing what reads the others takes a third of a second
        return [(split, 0, sizes[split])]
    import tensorflow_datasets as tfds

    infos = {
        name: tfds.core.SplitInfo(name=name, shard_lengths=[n], num_bytes=0, filename_template=None)
        for name, n in sizes.items()
    }
    try:
        found = [
            (part.splitname, *slice(part.from_, part.to).indices(sizes[part.splitname])[:2])
            for part in tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
        ]
    except (ValueError, AssertionError, AttributeError, TypeError) as error:
        for word in (part.split("[")[0].strip() for part in split.split("+")):
            if word not in sizes:
                raise UserError(f"dataset {dataset} has no split {word!r}: {nearest(word, sizes)}") from error
        has = ", ".join(f"{n} in {name}" for name, n in sizes.items())
        raise UserError(f"split {split!r} of {dataset} (examples: {has}): {one_line(error)}") from error
    if not any(last > first for _, first, last in found):
        raise UserError(f"split {split!r} of {dataset} is empty")
    return found


def shared(a: str, b: str, info: Info) -> int:
    """The number of examples that two split expressions have in common; 0 where one names a split of the data set's own making."""
    if not {part.split("[")[0].strip() for part in a.split("+")} & {
        part.split("[")[0].strip() for part in b.split("+")
    }:
        return 0
    try:
        both = [(x, y) for x in parts(a, info.splits, info.name) for y in parts(b, info.splits, info.name)]
    except UserError:
        return 0
    return sum(max(0, min(x[2], y[2]) - max(x[1], y[1])) for x, y in both if x[0] == y[0])


def bad_record(which: str, why: Exception, bad_records: str) -> None:
    """Handles a bad record: `ValueError` with "stop", a line with "skip"."""
    if bad_records != "skip":
        raise ValueError(f"{which}: {one_line(why)}; bad_records='skip' leaves such records out") from why
    say(f"{which} is left out: {one_line(why)[:300]}")


def usable(split: Split, info: Info, which: str, bad_records: str) -> tuple[Split, int]:
    """The examples of a split with a valid label, and how many others are left out.

    Raises `UserError` for the first invalid one, with `bad_records="stop"`; if nothing is left; or if the images or the labels
    are not what `info` says. Names classes without an example.
    """
    try:
        images, labels = split
        images_are, labels_are = (f"{part.dtype} {list(part.shape)}" for part in (images, labels))
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{which}: load must return two arrays, images and labels: {one_line(error)[:200]}") from error
    count, each = len(images) if images.ndim else 0, (info.classes,) if info.multilabel else ()
    if images.dtype != np.uint8 or images.shape != (count, *info.image_shape) or not count:
        raise UserError(
            f"{which}: images are {images_are}, expected uint8 [N, {', '.join(map(str, info.image_shape))}]"
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != (count, *each):
        raise UserError(f"{which}: labels are {labels_are}, expected int32 {[count, *each]}, numbers of classes")
    present = np.flatnonzero((labels > 0).any(0)) if info.multilabel else labels
    absent = np.setdiff1d(np.arange(info.classes), present).tolist()
    if absent:
        named = ", ".join(info.names[k] for k in absent[:20])
        say(f"warning: {which} has no example of {len(absent)} of {info.classes} classes: {named}")
    wrong = ~np.isin(labels, (-1, 0, 1)).all(1) if info.multilabel else (labels < 0) | (labels >= info.classes)
    bad = np.flatnonzero(wrong)
    if not len(bad):
        return split, 0
    first = np.ravel(labels[bad[0]])[0]
    why = (
        f"example {bad[0]} could not be read"
        if first == UNREADABLE
        else f"label {first} of example {bad[0]} is not between 0 and {info.classes - 1}"
    )
    said = f"{which}: {why}"
    if bad_records != "skip":
        raise UserError(f"{said} ({len(bad)} of {len(labels)} are bad; bad_records='skip' leaves them out)")
    if len(bad) == len(labels):
        raise UserError(f"{said}, and no other can be used either")
    say(f"{said}; {len(bad)} of {len(labels)} examples are left out")
    good = np.delete(np.arange(len(labels)), bad)
    return (images[good], labels[good]), len(bad)
