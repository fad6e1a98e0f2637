"""The paper's figures, from runs.

    python -m nin_jax.paper.figures fig3 RUN_DIR... [--out=DIR]      training and test error over epochs
    python -m nin_jax.paper.figures fig4 RUN_DIR [--out=DIR]         the class maps of one test image per class
    python -m nin_jax.paper.figures evidence RUN_DIR [--out=DIR]     the same images under the map of their class

Each writes NAME.png and NAME.svg into DIR (default: the first RUN_DIR). Needs the extra `plot`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nin_jax import config as config_lib
from nin_jax import storage
from nin_jax.arguments import Parser
from nin_jax.console import exiting, say
from nin_jax.errors import UserError
from nin_jax.training.build import Run
from nin_jax.training.load import load_run

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito: safe for colour blindness
TRUE = "#d55e00"
SHOWN_PCT = 10  # per cent of an image's activations, the largest, that figure 4 shows
MOST_MAPS = 10  # class maps beside an image; with more classes, those of the largest logits and the true class


def errors(workdir: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Epochs and errors in per cent by split, from metrics.jsonl. Raises `UserError` where it has no rows."""
    curves: dict[str, list[tuple[float, float]]] = {}
    try:
        for line in (workdir / "metrics.jsonl").read_text().splitlines():
            row = json.loads(line)
            curves.setdefault(row["split"], []).append((row["epoch"], row["error_pct"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{workdir / 'metrics.jsonl'} cannot be read: {error}") from error
    if not curves:
        raise UserError(f"{workdir / 'metrics.jsonl'} has no rows; train first")
    return {split: (np.array([e for e, _ in p]), np.array([e for _, e in p])) for split, p in curves.items()}


def labels(workdirs: Sequence[Path]) -> list[str]:
    """A label for each run, such as "dropout 0.5": the config keys in which the runs differ."""
    configs = []
    for workdir in workdirs:
        try:
            configs.append(json.loads((workdir / "config.json").read_text()))
        except (OSError, ValueError) as error:
            raise UserError(f"{workdir / 'config.json'} cannot be read: {error}") from error
    keys = {line.split(":")[0] for c in configs for line in config_lib.differences(configs[0], c)}
    keys -= set(config_lib.NOT_THE_RUN)

    def value(config: Any, key: str) -> Any:
        for part in key.split("."):
            config = config.get(part, {})
        return "none" if config == {} else config

    return [
        ", ".join(f"{key.split('.')[-1].replace('_', ' ')} {value(c, key)}" for key in sorted(keys)) or workdir.name
        for c, workdir in zip(configs, workdirs, strict=True)
    ]


def fig3(workdirs: Sequence[Path]) -> Any:
    """Figure 3: training and test error over epochs, one colour per run (there: with and without dropout).

    The training error is the mean over an epoch's steps, with dropout on where the run has it.
    """
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for i, (workdir, label) in enumerate(zip(workdirs, labels(workdirs), strict=True)):
        colour = COLOURS[i % len(COLOURS)]
        for split, (epoch, error) in sorted(errors(workdir).items(), key=lambda item: item[0] == "train"):
            style = {"linestyle": "--", "linewidth": 1.2} if split == "train" else {"linewidth": 2.0}
            axes.plot(epoch, error, color=colour, label=f"{label}: {split}", **style)
    axes.set(xlabel="epoch", ylabel="error (%)", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


class Examples:
    """The first test image of each class, and what the newest checkpoint of a run predicts for it.

    Attributes:
      images: uint8 `[K, H, W, C]`.
      classes: their true classes.
      logits: float32 `[K, num_classes]`.
      maps: their class maps, float32 `[K, h, w, num_classes]`.
      names: names of all classes.
    """

    def __init__(self, workdir: Path):
        predictor = load_run(workdir)
        run = Run(predictor.config, predictor.info)
        data = run.load(predictor.config.eval_split)
        if not isinstance(data, tuple) or run.info.multilabel:
            raise UserError(f"{workdir}: figures need a data set that fits in memory, with one label an image")
        images, truth = data
        self.classes = np.unique(truth)[: 2 * MOST_MAPS]
        self.images = np.stack([images[np.flatnonzero(truth == k)[0]] for k in self.classes])
        self.logits, maps = predictor(self.images)
        if "class_maps" not in maps:
            raise UserError(f"{workdir}: model {predictor.config.model.name!r} has no class maps to show")
        self.maps = np.asarray(maps["class_maps"], np.float32)
        self.names = run.info.names


def strongest(maps: np.ndarray) -> np.ndarray:
    """An image's activations `[h, w, K]` with all but the largest `SHOWN_PCT` per cent, over all maps, set to 0."""
    return np.where(maps >= np.percentile(maps, 100 - SHOWN_PCT), np.maximum(maps, 0), 0)


def fig4(examples: Examples) -> Any:
    """Figure 4: one row per image, its class maps beside it, the true class framed.

    A map shows the image's strongest activations (`strongest`), from white (none) to black (the image's largest).
    """
    plt = pyplot()
    rows = len(examples.images)
    shown = [columns_of(k, logits) for k, logits in zip(examples.classes, examples.logits, strict=True)]
    few = len(examples.names) <= MOST_MAPS  # then each column is one class, named once at the top
    turned = {"rotation": 40, "rotation_mode": "anchor", "ha": "left"} if few else {}
    figure, axes = plt.subplots(
        rows, len(shown[0]) + 1, figsize=(0.72 * (len(shown[0]) + 1) + 0.9, (0.72 if few else 0.9) * rows + 0.9),
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for row, (image, k, columns) in enumerate(zip(examples.images, examples.classes, shown, strict=True)):
        kept = strongest(examples.maps[row])
        _show(axes[row, 0], image)
        axes[row, 0].set_ylabel(examples.names[k], rotation=0, ha="right", va="center", fontsize=8)
        for column, ax in zip(columns, axes[row, 1:], strict=True):
            ax.imshow(
                kept[..., column], cmap="Greys", vmin=0, vmax=max(float(kept.max()), 1e-9), interpolation="nearest"
            )
            ax.set(xticks=[], yticks=[])
            for spine in ax.spines.values():
                spine.set(color=TRUE if column == k else "#bbbbbb", linewidth=2.5 if column == k else 0.6)
            if not few or row == 0:
                ax.set_title(examples.names[column], fontsize=7 if few else 5, **turned)
    return figure


def evidence(examples: Examples) -> Any:
    """Each image, and beside it the same under the enlarged map of its true class: where the network sees it."""
    plt = pyplot()
    rows = -(-len(examples.images) // 5)
    figure, axes = plt.subplots(rows, 10, figsize=(9.6, 1.25 * rows), squeeze=False, layout="constrained")
    for ax in axes.flat:
        ax.axis("off")
    height, width = examples.images.shape[1:3]
    for i, (image, k) in enumerate(zip(examples.images, examples.classes, strict=True)):
        plain, over = axes[i // 5, 2 * (i % 5) : 2 * (i % 5) + 2]
        for ax in (plain, over):
            ax.axis("on")
            _show(ax, image)
        own = np.maximum(examples.maps[i, ..., k], 0)
        largest = max(float(own.max()), 1e-9)
        over.imshow(
            own, cmap="inferno", vmin=0, vmax=largest, alpha=0.65, interpolation="bilinear",
            extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        )  # fmt: skip
        predicted = examples.names[int(np.argmax(examples.logits[i]))]
        wrong = predicted != examples.names[k]
        plain.set_title(examples.names[k], fontsize=8)
        over.set_title(f"taken for {predicted}" if wrong else "right", fontsize=8, color=TRUE if wrong else "black")
    return figure


def columns_of(true: int, logits: np.ndarray) -> list[int]:
    """Classes whose maps are shown: the best `MOST_MAPS`, and the true one in place of the last of them."""
    if len(logits) <= MOST_MAPS:
        return list(range(len(logits)))
    best = [int(k) for k in np.argsort(-logits, kind="stable")[:MOST_MAPS]]
    return best if true in best else [*best[:-1], int(true)]


def _show(ax: Any, image: np.ndarray) -> None:
    ax.imshow(image if image.shape[-1] == 3 else image[..., 0], cmap="gray", interpolation="nearest")
    ax.set(xticks=[], yticks=[])


def pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise UserError('figures need matplotlib: python -m pip install "nin_jax[plot]"') from error
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "nin_jax"  # the same figure gives the same file
    return plt


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line above."""
    parser = Parser("python -m nin_jax.paper.figures", __doc__)
    parser.add_argument("figure", choices=("fig3", "fig4", "evidence"))
    parser.add_argument("workdirs", nargs="+", type=Path, metavar="RUN_DIR")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the files go; default: the first RUN_DIR")
    args = parser.parse(sys.argv[1:] if argv is None else argv)
    if args.figure != "fig3" and len(args.workdirs) > 1:
        raise UserError(f"{args.figure} shows one run, not {len(args.workdirs)}")
    if args.figure == "fig3":
        figure = fig3(args.workdirs)
    else:
        figure = {"fig4": fig4, "evidence": evidence}[args.figure](Examples(args.workdirs[0]))
    out = args.out or args.workdirs[0]
    storage.make_folder(out)
    for ending, metadata in ((".png", {"Software": None}), (".svg", {"Date": None})):
        figure.savefig(out / (args.figure + ending), dpi=160, metadata=metadata)
    say(f"{out / args.figure}.png and .svg")


if __name__ == "__main__":
    with exiting():
        main()
