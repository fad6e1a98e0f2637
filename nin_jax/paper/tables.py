"""Tables of what the paper reports beside what this code has reached, from the recorded runs.

    python -m nin_jax.paper.tables                        # rewrites the tables in docs/reproduce.md and README.md
    python -m nin_jax.paper.tables --collect RUN_DIR...   # first adds finished runs to experiments/results/*.csv

A finished run adds a row to its experiment's file, once, and a second row for its training error. Its experiment is the one
whose config differs from the run's in the fewest keys; those keys are the row's overrides. Only a row without overrides
counts as a reproduction of the paper's number.
"""

from __future__ import annotations

import csv
import datetime
import functools
import io
import json
import operator
import runpy
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nin_jax import config as config_lib
from nin_jax import main as main_lib
from nin_jax import registry, storage
from nin_jax.arguments import Parser
from nin_jax.config import Config, ConfigDict
from nin_jax.console import exiting, say
from nin_jax.errors import UserError
from nin_jax.paper import pages, reported
from nin_jax.paper.pages import command
from nin_jax.runs.record import eval_name

ROOT = Path(__file__).parents[2]  # of a checkout
PAGES = "docs/reproduce.md", "README.md", "docs/hcp.md"
RESULTS = "experiments/results"

COLUMNS = ["config", "overrides", "seed", "paper_row", "metric", "value", "reported", "epochs", "steps"]
COLUMNS += ["train_seconds", "device", "devices", "precision", "versions", "commit", "date"]
# Rows that agree in these are the same run: its experiment may have changed since, and its date is that of a file.
SAME_RUN = ("seed", "metric", "value", "epochs", "steps", "train_seconds", "device", "devices", "precision")

# Runs that differ only in these belong to the same row of a table.
NOT_THE_EXPERIMENT = (*config_lib.NOT_THE_RUN, "seed", "eval_every_epochs")

TRAINING = "train_error_pct"  # the metric of a run's second row
BFLOAT16 = "--config.precision=bfloat16"  # overrides of a run whose recipe is unchanged, and whose arithmetic is not
LENGTH = {"epochs", "schedule.boundaries_epochs", "precision"}  # keys of a run that is only shorter than its recipe

Result = dict[str, str]  # a row of a results file, by column


@functools.cache
def recipes() -> dict[str, dict[str, Any]]:
    """The plain config of every experiment and argument of the project, by "experiments/NAME.py:ARG"."""
    found: dict[str, dict[str, Any]] = {}
    named = [config for row in reported.ROWS for config in row.configs]
    for name, file in config_lib.experiments().items():
        namespace = runpy.run_path(str(file), run_name="experiment")
        text = f"experiments/{name}.py"
        others = [other.split(":")[1] for other in named if other.startswith(f"{text}:")]
        for arg in dict.fromkeys([None, *namespace.get("ARGUMENTS", ()), *others]):
            found[text + (f":{arg}" if arg else "")] = with_defaults(namespace["get_config"](arg))
    return found


@functools.cache
def canonical(config: str) -> str:
    """The first recipe with the same config: "experiments/cifar10.py" for "experiments/ablations/dropout.py:with"."""
    known = recipes()
    if config not in known:
        return config
    return next(name for name, plain in known.items() if not _differing(plain, known[config]))


def with_defaults(config: ConfigDict | Config) -> dict[str, Any]:
    """`to_dict`, with the defaults of the model's own arguments filled in."""
    plain = config_lib.to_dict(config)
    name = plain["model"]["name"]
    entry = registry.find("models", name)
    arguments = registry.legal_arguments("models", entry)
    defaults = {k: getattr(entry.Model, k) for k in arguments if hasattr(entry.Model, k)}
    return plain | {"model": json.loads(json.dumps(defaults, default=str)) | plain["model"]}


def _differing(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    keys = (line.split(":")[0] for line in config_lib.differences(a, b))
    return [key for key in keys if key not in NOT_THE_EXPERIMENT]


def result(workdir: Path) -> Result | None:
    """The row of a run directory; None, with a line that says so, for an unfinished run. Raises `UserError`."""
    path = workdir / "config.json"
    try:
        plain = with_defaults(config_lib.from_dict(json.loads(path.read_text())))
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise UserError(f"--collect={workdir} is not a run directory: {path} cannot be read: {error}") from error
    path = workdir / "summary.json"
    try:
        summary: Any = json.loads(path.read_text()) if path.exists() else {"status": "not finished"}
        status = summary["status"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--collect={workdir}: {path} cannot be read: {error}") from error
    if status != "done":
        say(f"{workdir} is left out: {status}")
        return None
    plain["init_from"] = _first_stage(plain["init_from"])
    keys = _keys(plain)
    near = {name: _differing(recipe, plain) for name, recipe in recipes().items() if _keys(recipe) == keys}
    if not near:
        raise UserError(
            f"--collect={workdir}: no experiment of the project has its keys (model {plain['model']['name']!r})"
        )
    name = min(near, key=lambda k: len(near[k]))
    rows = [] if near[name] else [r for r in reported.ROWS if name in map(canonical, r.configs)]
    row = {
        "config": name,
        "overrides": shlex.join(f"--config.{key}={_value(plain, key)}" for key in near[name]),
        "paper_row": rows[0].name if rows else "",
        "metric": f"{eval_name(plain['eval_split'])}_error_pct",
        "value": round(summary["test_error_pct"], 4),
        "reported": rows[0].value if rows else "",
        "steps": summary["step"],
        "train_seconds": round(summary["train_seconds"], 3),
        "precision": plain["precision"],
        "versions": json.dumps(summary["versions"], sort_keys=True),
        "commit": summary["commit"] or "",
        "date": datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC).date().isoformat(),
    } | {key: summary[key] for key in ("seed", "epochs", "device", "devices")}
    return {column: str(row[column]) for column in COLUMNS}


def _first_stage(init_from: str | None) -> str | None:
    """ "runs/hcp_voc-images" for a run of hcp_voc.py:images, wherever it lies; what is no run of a recipe as it stands is itself."""
    folder = Path(init_from or "")
    row = result(folder) if init_from and (folder / "summary.json").is_file() else None
    return init_from if row is None or row["overrides"] else main_lib.default_directory(*main_lib.find(row["config"]))


def _value(plain: Mapping[str, Any], key: str) -> Any:
    """The value of "optimizer.momentum" as the command line takes it: tuples, not lists."""

    def tuples(value: Any) -> Any:
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    return tuples(functools.reduce(operator.getitem, key.split("."), plain))


def _keys(plain: Mapping[str, Any], where: str = "") -> set[str]:
    """Every key of a plain config that an override can set."""
    keys: set[str] = set()
    for key, value in plain.items():
        keys |= _keys(value, f"{where}{key}.") if isinstance(value, Mapping) else {where + key}
    return keys


def training_result(row: Result, workdir: Path) -> Result | None:
    """`row` with the training error of the last epoch, with dropout on; None if metrics.jsonl has none."""
    try:
        rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        value = next(r["error_pct"] for r in reversed(rows) if r["split"] == "train" and r["step"] == int(row["steps"]))
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return None
    return row | {"paper_row": "", "metric": TRAINING, "value": str(round(value, 4)), "reported": ""}


def collect(workdirs: Iterable[Path], folder: Path) -> int:
    """Adds the rows of each finished run to the file of its experiment, unless they are there already.

    Returns the number of rows added. Raises `UserError` for a folder that is not a run directory, before writing anything.
    """

    def identity(row: Result) -> tuple[str, ...]:
        return tuple(row[column] for column in SAME_RUN)

    known = {identity(row) for row in read(folder)}
    new: dict[Path, list[Result]] = {}
    found = [(tested, workdir) for workdir in workdirs if (tested := result(workdir))]
    for row in filter(None, [r for tested, workdir in found for r in (tested, training_result(tested, workdir))]):
        if identity(row) not in known:
            known.add(identity(row))
            new.setdefault(folder / f"{Path(row['config'].split(':')[0]).stem}.csv", []).append(row)
    storage.make_folder(folder)
    for file, rows in new.items():
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        if not file.exists():
            writer.writeheader()
        writer.writerows(rows)
        storage.write_whole(file, (file.read_text() if file.exists() else "") + text.getvalue())
    return sum(map(len, new.values()))


def read(folder: Path) -> list[Result]:
    """All rows of all results files."""
    rows: list[Result] = []
    for file in sorted(folder.glob("*.csv")):
        with open(file, newline="") as f:
            rows += csv.DictReader(f)
    return rows


class Recorded:
    """Recorded rows by recipe and overrides.

    Attributes:
      tested: rows of a test or validation error, by (recipe, overrides).
      trained: rows of a training error, likewise.
    """

    def __init__(self, rows: Iterable[Result]):
        self.tested: dict[tuple[str, str], list[Result]] = {}
        self.trained: dict[tuple[str, str], list[Result]] = {}
        for row in rows:
            group = self.trained if row["metric"] == TRAINING else self.tested
            group.setdefault((canonical(row["config"]), row["overrides"]), []).append(row)

    def of(self, config: str) -> list[Result]:
        """The rows of a recipe without overrides; where there are none, those in bfloat16, which says so beside the error."""
        return self.tested.get((canonical(config), self.overrides(config)), [])

    def overrides(self, config: str) -> str:
        """The overrides of the rows that stand for a recipe."""
        return BFLOAT16 * ((canonical(config), "") not in self.tested and (canonical(config), BFLOAT16) in self.tested)

    def training_error(self, config: str, overrides: str) -> str:
        rows = self.trained.get((canonical(config), overrides), [])
        return pages.error(rows) if rows else ""


def tables(results: Iterable[Result]) -> dict[str, str]:
    """Every generated table as Markdown, by its name in the pages."""
    recorded = Recorded(results)
    ablations = [c for c in recipes() if c.startswith("experiments/ablations/") and ":" in c]
    shown = {canonical(config) for row in reported.ROWS for config in row.configs} | set(map(canonical, ablations))
    generated = {table: _reported_table(table, recorded) for table in dict.fromkeys(row.table for row in reported.ROWS)}
    generated["Ablations"] = pages.markdown(
        ["experiment", "ours %", "training error %", "evaluated on", "device", "training time", "command"],
        [
            [
                config.removeprefix("experiments/ablations/").replace(".py:", ": "),
                pages.error(recorded.of(config)),
                recorded.training_error(config, recorded.overrides(config)),
                f"`{recipes()[config]['eval_split']}`",
                *pages.cost(recorded.of(config)),
                command(config),
            ]
            for config in ablations
        ],
    )
    full, reduced = [], []
    for (config, overrides), rows in recorded.tested.items():
        if recipes().get(config, {}).get("task") == "multilabel":  # they have a table of their own
            continue
        epochs, trained = f"{float(rows[0]['epochs']):g}", recorded.training_error(config, overrides)
        cells = [pages.error(rows), pages.words(rows[0]["metric"]), trained, epochs, *pages.cost(rows)]
        if "/ablations/" not in config and config in recipes() and _changed(overrides) <= LENGTH:
            named = pages.kept(rows), pages.commits(rows), command(config, overrides)
            full.append([*cells, paper_value(config, overrides), *named])
        if overrides not in ("", BFLOAT16) or config not in shown:
            reduced.append([*cells, command(config, overrides)])
    head = ["ours %", "what", "training error %", "epochs", "device", "training time", "command"]
    none = "None has been recorded."
    generated["Reduced scale"] = pages.markdown(head, reduced) if reduced else none
    full_head = [*head[:-1], "the paper's %", "the file in the package %", "commit", head[-1]]
    generated["Measured here"] = pages.markdown(full_head, full) if full else none
    generated["HCP"] = pages.markdown(
        ["experiment", "mAP % (VOC 2007)", "device", "training time", "command"],
        [
            [config.removeprefix("experiments/"), pages.error(precisions), *pages.cost(precisions), command(config)]
            for config, plain in recipes().items()
            if plain["model"]["name"] == "hcp"
            for precisions in [[row | {"value": str(100 - float(row["value"]))} for row in recorded.of(config)]]
        ],
    )
    generated["Results"] = pages.markdown(
        ["dataset", "paper", "reported %", "ours %", "command"],
        [
            [
                row.dataset + ", augmented" * row.method.endswith("Augmentation"),
                row.table,
                f"{row.value:.2f}",
                pages.error(recorded.of(row.configs[0])),
                command(row.configs[0]),
            ]
            for row in reported.ROWS
            if row.method.startswith("NIN + Dropout")
        ],
    )
    return generated


def _changed(overrides: str) -> set[str]:
    """The keys of overrides."""
    return {word.split("=")[0].removeprefix("--config.") for word in shlex.split(overrides)}


def paper_value(config: str, overrides: str) -> str:
    """What the paper reports for the data of a recipe, with or without augmentation, and how its recipe differs."""
    recipe = recipes()[config]
    methods = ("NIN + Dropout + Data Augmentation", "NIN + Dropout")[0 if recipe["augment"] else 1 :]
    for row in sorted((r for r in reported.ROWS if r.method in methods), key=lambda r: methods.index(r.method)):
        if recipes()[row.configs[0]]["dataset"] == recipe["dataset"]:
            if row.method != methods[0]:
                return f"{row.value:.2f}, without augmentation"
            if overrides in ("", BFLOAT16) and config in row.configs:
                return f"{row.value:.2f}"
            shorter = config in row.configs and _changed(overrides) <= LENGTH
            how = f"in {recipe['epochs']} epochs" if shorter else "by another recipe"
            return f"{row.value:.2f}, {how}"
    return "not in the paper"


def _reported_table(table: str, recorded: Recorded) -> str:
    """A table of the paper: a line for each of its rows and each experiment that reproduces the row."""
    lines = []
    for row in (r for r in reported.ROWS if r.table == table):
        value = f"{row.value:.2f}" if row.metric == "test_error_pct" else f"{row.value:g} ({pages.words(row.metric)})"
        printed = [row.method, row.dataset, value]
        if not row.configs:
            lines.append([*printed, "", "", "", "", row.without])
        for config in row.configs:
            rows = recorded.of(config)
            difference = f"{pages.mean(rows) - row.value:+.2f}" if rows else ""
            lines.append([*printed, pages.error(rows), difference, *pages.cost(rows), command(config)])
    head = ["method", "dataset", "reported %", "ours %", "ours - reported", "device", "training time", "command"]
    return pages.markdown(head, lines)


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> None:
    """Runs the command line above, in a checkout."""
    parser = Parser("python -m nin_jax.paper.tables", __doc__)
    parser.add_argument("--collect", nargs="+", default=[], type=Path, metavar="RUN_DIR", help="finished runs to add")
    workdirs = parser.parse(sys.argv[1:] if argv is None else argv).collect
    for page in PAGES:
        if not (root / page).exists():
            raise UserError(f"{root / page} is missing; the tables are written in a checkout of the project")
    if workdirs:
        say(f"{collect(workdirs, root / RESULTS)} rows added to {root / RESULTS}")
    generated = tables(read(root / RESULTS))
    for page in PAGES:
        pages.write(root / page, generated)


if __name__ == "__main__":
    with exiting():
        main()
