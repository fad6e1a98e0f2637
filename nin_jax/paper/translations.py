"""How the test error grows when the images are shifted (paper section 3.2), of finished runs.

    python -m nin_jax.paper.translations RUN_DIR... [--images=2000]

The first test images are shifted by 0 to 8 pixels up, down, left and right, and their edge is repeated where that leaves
room. A row for each run and shift, the mean of the four directions, is added to experiments/results/translations/NAME.csv,
NAME being that of the run's experiment. `python -m nin_jax.paper.recorded` draws them.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from nin_jax import storage
from nin_jax.arguments import Parser
from nin_jax.console import exiting, say
from nin_jax.errors import UserError
from nin_jax.paper import tables
from nin_jax.training.load import variables_of
from nin_jax.training.step import predict

SHIFTS = range(9)
DIRECTIONS = ((0, 1), (0, -1), (1, 0), (-1, 0))
COLUMNS: Sequence[str] = ("config", "overrides", "seed", "shift", "error_pct", "images", "commit")
BATCH = 250


def shifted(images: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Images uint8 `[N, H, W, C]` moved down by `rows` and right by `columns`; their edge is repeated where that leaves room."""
    height, width = images.shape[1:3]
    i, j = np.arange(height) - rows, np.arange(width) - columns
    return images[:, i.clip(0, height - 1)][:, :, j.clip(0, width - 1)]


def errors(workdir: Path, count: int) -> dict[int, float]:
    """The error in per cent at each shift, of the newest checkpoint of a run on the first `count` test images."""
    run, variables = variables_of(workdir)
    stats, recipe = run.fitted(workdir, write=False), run.recipe(1)
    data = run.load(run.config.eval_split)
    if not isinstance(data, tuple) or run.info.multilabel:
        raise UserError(f"{workdir}: shifts are for data sets that fit in memory, with one label an image")
    images, truth = data[0][:count], data[1][:count]
    classify = jax.jit(lambda batch: predict(recipe, variables, stats, batch)[0].argmax(-1))

    def error(rows: int, columns: int) -> float:
        moved = shifted(images, rows, columns)
        parts = [np.asarray(classify(moved[k : k + BATCH])) for k in range(0, len(moved), BATCH)]
        return 100 * float(np.mean(np.concatenate(parts) != truth))

    return {
        n: float(np.mean([error(n * down, n * right) for down, right in (DIRECTIONS if n else DIRECTIONS[:1])]))
        for n in SHIFTS
        if n < min(images.shape[1:3])
    }


def measure(workdir: Path, count: int) -> list[dict[str, str]]:
    """The rows of a finished run. Raises `UserError` for another folder."""
    row = tables.result(workdir)
    if row is None:
        raise UserError(f"{workdir} is not a finished run")
    known = {key: row[key] for key in COLUMNS if key in row}
    return [
        known | {"shift": str(n), "error_pct": f"{error:.3f}", "images": str(count)}
        for n, error in errors(workdir, count).items()
    ]


def main(argv: Sequence[str] | None = None, folder: Path = tables.ROOT / tables.RESULTS / "translations") -> None:
    """Runs the command line above."""
    parser = Parser("python -m nin_jax.paper.translations", __doc__)
    parser.add_argument("workdirs", nargs="+", type=Path, metavar="RUN_DIR")
    parser.add_argument("--images", type=int, default=2000, metavar="N", help="how many test images, the first ones")
    args = parser.parse(sys.argv[1:] if argv is None else argv)
    if args.images < 1:
        raise UserError(f"--images={args.images}: must be 1 or more")
    for workdir in args.workdirs:
        rows = measure(workdir, args.images)
        file, text = folder / f"{Path(rows[0]['config'].split(':')[0]).stem}.csv", io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        if not file.exists():
            writer.writeheader()
        writer.writerows(rows)
        storage.make_folder(folder)
        storage.write_whole(file, (file.read_text() if file.exists() else "") + text.getvalue())
        say(f"{workdir}: {', '.join(row['error_pct'] for row in rows)} %")


if __name__ == "__main__":
    with exiting():
        main()
