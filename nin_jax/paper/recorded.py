"""The figures of docs/ that show recorded runs, drawn from experiments/results.

    python -m nin_jax.paper.recorded                      # draws curves, claims and translations into docs/figures
    python -m nin_jax.paper.recorded --keep RUN_DIR...    # first copies what is drawn of finished runs' metrics.jsonl

A copy is experiments/results/curves/NAME.json, NAME being that of the run directory: {"command": ..., "train": [[epoch,
error in per cent], ...], "test": ...}. Needs the extra `plot`.
"""

from __future__ import annotations

import csv
import json
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nin_jax import storage
from nin_jax.arguments import Parser
from nin_jax.console import exiting, say
from nin_jax.errors import UserError
from nin_jax.paper import figures, tables

Result = tables.Result
TICKS = 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100  # of errors in per cent, on a logarithmic axis
# The panels of the figure of the claims: a title, and rows of experiments/ablations/claims.py with what stands below them.
PANELS = {
    "1x1 layers in each mlpconv": {"cccp_0": "0", "cccp_1": "1", "gap": "2", "cccp_3": "3"},
    "mlpconvs": {"mlpconv_2": "2", "gap": "3", "mlpconv_4": "4"},
    "micro network": {"cccp_1": "rectifiers", "radial": "radial basis"},
    "head": {"gap": "average", "fc": "fully\nconnected", "fc_dropout": "dropout,\nconnected"},
}


def keep(workdir: Path, folder: Path) -> None:
    """Copies the errors of a finished run, by split and epoch. Raises `UserError` for another folder."""
    row = tables.result(workdir)
    if row is None:
        raise UserError(f"--keep={workdir} is not a finished run")
    curves = {
        split: [[float(e), round(float(p), 3)] for e, p in zip(*points, strict=True)]
        for split, points in figures.errors(workdir).items()
    }
    words = f"{row['config']} {row['overrides']}".strip()
    storage.make_folder(folder)
    storage.write_whole(folder / f"{workdir.name}.json", json.dumps({"command": words, **curves}) + "\n")


def curves(files: Sequence[Path]) -> Any:
    """A panel for each kept run: test error (solid) and training error (dashed) over epochs."""
    plt = figures.pyplot()
    columns = min(3, len(files))
    lines = -(-len(files) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(3.4 * columns, 2.7 * lines), squeeze=False, layout="constrained"
    )
    for ax in axes.flat[len(files) :]:
        ax.axis("off")
    for ax, file in zip(axes.flat, files, strict=False):
        kept = json.loads(file.read_text())
        for split in sorted(kept.keys() - {"command"}):
            epochs, errors = zip(*kept[split], strict=True)
            style = {"linestyle": "--", "linewidth": 1.0} if split == "train" else {"linewidth": 1.6}
            ax.plot(
                epochs, errors, color=figures.COLOURS[split == "train"], label=f"{split}: {errors[-1]:.2f} %", **style
            )
        ax.set(yscale="log", xlabel="epoch", ylabel="error (%)")
        low, high = ax.get_ylim()
        ax.set_yticks([t for t in TICKS if low <= t <= high], minor=False)
        ax.minorticks_off()
        ax.yaxis.set_major_formatter("{x:g}")
        ax.tick_params(labelsize=7)
        ax.set_title(file.stem, fontsize=8)
        ax.grid(alpha=0.3)
        ax.legend(frameon=False, fontsize=7)
    return figure


def claims(rows: Iterable[Result]) -> Any:
    """Test error (filled) and training error (hollow) of the rows of experiments/ablations/claims.py, a dot for each seed.

    Rows that are not recorded are left out, and panels with fewer than two.
    """
    plt = figures.pyplot()
    recorded = tables.Recorded(rows)

    def key(row: str) -> tuple[str, str]:
        return tables.canonical(f"experiments/ablations/claims.py:{row}"), ""

    panels = {title: {r: t for r, t in rows.items() if key(r) in recorded.tested} for title, rows in PANELS.items()}
    panels = {title: shown for title, shown in panels.items() if len(shown) > 1}
    width = 2.7 * len(panels)
    figure, axes = plt.subplots(1, len(panels), figsize=(width, 3.1), sharey=True, squeeze=False, layout="constrained")
    axes = axes[0]
    for ax, (title, shown) in zip(axes, panels.items(), strict=True):
        for x, row in enumerate(shown):
            for group, fill, colour in (
                (recorded.tested, "full", figures.COLOURS[0]),
                (recorded.trained, "none", figures.COLOURS[1]),
            ):
                values = [float(result["value"]) for result in group.get(key(row), [])]
                ax.plot([x] * len(values), values, "o", fillstyle=fill, color=colour, markersize=5)
        ax.set_xticks(range(len(shown)), list(shown.values()), fontsize=8)
        ax.set_xlim(-0.5, len(shown) - 0.5)
        ax.set_title(title, fontsize=9)
        ax.grid(alpha=0.3, axis="y")
    axes[0].set_ylabel("error (%): test filled, training hollow", fontsize=8)
    return figure


def translations(rows: Iterable[Mapping[str, str]], names: Mapping[str, str]) -> Any:
    """Test error over the shift of the image: the mean over seeds of each of `names` (labels by config), and each seed."""
    plt = figures.pyplot()
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for row in rows:
        if row["config"] in names and not row["overrides"]:
            point = int(row["shift"]), float(row["error_pct"])
            found.setdefault(row["config"], {}).setdefault(row["seed"], []).append(point)
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.3), layout="constrained")
    for colour, (config, label) in zip(figures.COLOURS, names.items(), strict=False):
        runs = [dict(points) for points in found.get(config, {}).values()]
        for shifts in runs[:1]:
            for ax, base in ((left, 0), (right, 1)):
                grown = [[run[n] - base * run[0] for n in shifts] for run in runs]
                for line in grown:
                    ax.plot(list(shifts), line, color=colour, linewidth=0.6, alpha=0.5)
                mean = [statistics.fmean(values) for values in zip(*grown, strict=True)]
                ax.plot(list(shifts), mean, "o-", color=colour, markersize=3, label=f"{label} (n = {len(runs)})")
    left.set(xlabel="shift (pixels)", ylabel="test error (%)")
    right.set(xlabel="shift (pixels)", ylabel="more than unshifted (percentage points)")
    for ax in (left, right):
        ax.grid(alpha=0.3)
    left.legend(frameon=False, fontsize=8)
    return figure


def main(argv: Sequence[str] | None = None, root: Path = tables.ROOT) -> None:
    """Runs the command line above, in a checkout."""
    parser = Parser("python -m nin_jax.paper.recorded", __doc__)
    parser.add_argument("--keep", nargs="+", default=[], type=Path, metavar="RUN_DIR", help="finished runs to copy")
    results, out = root / tables.RESULTS, root / "docs/figures"
    for workdir in parser.parse(sys.argv[1:] if argv is None else argv).keep:
        keep(workdir, results / "curves")
    drawn = {}
    if files := sorted((results / "curves").glob("*.json")):
        drawn["curves"] = curves(files)
    drawn["claims"] = claims(tables.read(results))
    heads = {"gap": "global average", "fc": "fully connected", "fc_dropout": "fully connected, dropout"}
    names = {tables.canonical(f"experiments/ablations/claims.py:{row}"): label for row, label in heads.items()}
    if (file := results / "translations" / "claims.csv").exists():
        with open(file, newline="") as f:
            drawn["translations"] = translations(csv.DictReader(f), names)
    storage.make_folder(out)
    for name, figure in drawn.items():
        figure.savefig(out / f"{name}.png", dpi=160, metadata={"Software": None})
        say(f"{out / name}.png")


if __name__ == "__main__":
    with exiting():
        main()
