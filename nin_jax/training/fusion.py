"""Late fusion of the scores of two classifiers of the same pictures, as of HCP and a rival in the slides of 2014.

    python -m nin_jax.training.fusion A.json B.json [--weight=0.5] [-o FUSED.json]

prints the mean average precision of A, of B and of (1 - weight) A + weight B. A file is what --mode=eval --scores=FILE writes, or
another program's: {"classes": [name, ...], "scores": [[number of each class], ...], "labels": [[1, 0 or -1], ...]}, a row for
each picture, labels as in VOC's lists (0: difficult objects alone).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nin_jax import storage
from nin_jax.arguments import Parser
from nin_jax.console import exiting
from nin_jax.errors import UserError, one_line
from nin_jax.training.average_precision import mean_precision
from nin_jax.training.tasks.multilabel import probabilities


class Scores(NamedTuple):
    """Scores float64 `[N, K]`, the higher the likelier, and labels int32 `[N, K]` of pictures."""

    classes: tuple[str, ...]
    scores: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, classes: Sequence[str], logits: np.ndarray, labels: np.ndarray) -> Scores:
        """The probabilities of a network's logits."""
        return cls(tuple(classes), probabilities(logits), labels)


def write(file: Path, scores: Scores) -> None:
    """Writes a file of scores. Raises `StorageFailed`."""
    rows = [[float(f"{value:.8g}") for value in row] for row in scores.scores]
    plain = {"classes": scores.classes, "scores": rows, "labels": scores.labels.tolist()}
    storage.write_json(file, plain)


def read(file: Path) -> Scores:
    """Reads a file of scores. Raises `UserError`."""
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    try:
        plain = json.loads(file.read_text())
        found = Scores(
            tuple(map(str, plain["classes"])),
            np.array(plain["scores"], np.float64),
            np.array(plain["labels"]),  # whole numbers, as is checked
        )
        wanted = len(found.scores), len(found.classes)
        if found.scores.shape != wanted or found.labels.shape != wanted or not wanted[0]:
            raise ValueError(f"scores {found.scores.shape} and labels {found.labels.shape}, expected {wanted}")
        if not np.isfinite(found.scores).all() or not np.isin(found.labels, (-1, 0, 1)).all():
            raise ValueError("scores must be finite, and labels 1, 0 or -1")
        if len({*found.classes}) < len(found.classes):
            raise ValueError("a class is there twice")
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f"{file} is not a file of scores: {one_line(error)[:300]}") from error
    return found._replace(labels=found.labels.astype(np.int32))


def fuse(a: Scores, b: Scores, weight: float) -> Scores:
    """(1 - weight) a + weight b. Raises `UserError` unless both are of the same pictures and classes."""
    if a.classes != b.classes or not np.array_equal(a.labels, b.labels):
        raise UserError("the files are not of the same classes and pictures in the same order: their labels differ")
    return a._replace(scores=(1 - weight) * a.scores + weight * b.scores)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line above."""
    parser = Parser("python -m nin_jax.training.fusion", __doc__)
    parser.add_argument("files", nargs=2, type=Path, metavar="FILE")
    parser.add_argument("--weight", type=float, default=0.5, help="of the second file, 0 to 1; default 0.5")
    parser.add_argument("-o", "--output", type=Path, help="file for the fused scores")
    given = parser.parse(sys.argv[1:] if argv is None else argv)
    if not 0 <= given.weight <= 1:
        raise UserError(f"--weight={given.weight}: must be from 0 to 1")
    a, b = map(read, given.files)
    both = fuse(a, b, given.weight)
    if given.output:
        write(given.output, both)
    named = {"a": a, "b": b, "fused": both}
    found = {name: {k: 100 * v for k, v in mean_precision(s.scores, s.labels).items()} for name, s in named.items()}
    print(json.dumps({name: {f"{k}_pct": v for k, v in values.items()} for name, values in found.items()}))


if __name__ == "__main__":
    with exiting():
        main()
