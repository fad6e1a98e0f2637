"""Tables of what the paper reports beside what this code has reached, from the recorded runs.

    python -m nin_jax.paper.tables                        # writes the tables in docs/reproduce.md and README.md
    python -m nin_jax.paper.tables --collect RUN_DIR...   # first adds finished runs to experiments/results/*.csv

A run is a row of its experiment's file, once, and a second one for its training error. The experiment is the one whose
config differs from the run's in the fewest keys; those keys are the row's overrides. Only a row without overrides counts as a number of
the paper's tables.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import functools
import io
import json
import operator
import re
import runpy
import shlex
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nin_jax import config as config_lib
from nin_jax import registry, storage
from nin_jax.config import Config
from nin_jax.console import fail, say
from nin_jax.errors import ExitError, UserError, nearest
from nin_jax.paper import reported
from nin_jax.training import loop as train

ROOT = Path(__file__).parents[2]  # of a checkout
PAGES = "docs/reproduce.md", "README.md"
RESULTS = "experiments/results"

RUN_COLUMNS = ("seed", "metric", "value", "epochs", "steps", "train_seconds", "device", "devices", "precision")
COLUMNS = ["config", "overrides", "seed", "paper_row", "metric", "value", "reported", "epochs", "steps"]
COLUMNS += ["train_seconds", "device", "devices", "precision", "versions", "commit", "date"]

# What two runs of one experiment may differ in and still be the same row of a table.
NOT_THE_EXPERIMENT = (*config_lib.NOT_THE_RUN, "seed", "eval_every_epochs")

TRAINING = "train_error_pct"  # the metric of a run's second row

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
            found[text + (f":{arg}" if arg else "")] = _plain(namespace["get_config"](arg))
    return found


@functools.cache
def canonical(config: str) -> str:
    """The first of the recipes that say the same: "experiments/cifar10.py" for "experiments/ablations/dropout.py:with"."""
    known = recipes()
    return (
        next((k for k, v in known.items() if not _differing(v, known[config])), config) if config in known else config
    )


def _plain(config: Config) -> dict[str, Any]:
    """`to_dict`, with the arguments of the model that it leaves to the model."""
    plain = config_lib.to_dict(config)
    name = plain["model"]["name"]
    model = registry.find("models", name).Model
    defaults = {k: getattr(model, k) for k in config_lib.model_arguments(name) if hasattr(model, k)}
    return plain | {"model": json.loads(json.dumps(defaults)) | plain["model"]}


def _differing(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    keys = (line.split(":")[0] for line in config_lib.differences(a, b))
    return [key for key in keys if key not in NOT_THE_EXPERIMENT]


def result(workdir: Path) -> Result | None:
    """The row of a run directory; None, and a line that says so, where the run is not finished. Raises `UserError`."""
    path = workdir / "config.json"
    try:
        config = config_lib.from_dict(json.loads(path.read_text()))
        plain = _plain(config)
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise UserError(f"--collect={workdir} is no run directory: {path} cannot be read: {error}") from error
    path = workdir / "summary.json"
    try:
        summary: Any = json.loads(path.read_text()) if path.exists() else {"status": "not finished"}
        status = summary["status"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--collect={workdir}: {path} cannot be read: {error}") from error
    if status != "done":
        say(f"{workdir} is left out: {status}")
        return None
    near = {name: _differing(recipe, plain) for name, recipe in recipes().items() if _keys(recipe) == _keys(plain)}
    if not near:
        raise UserError(f"--collect={workdir}: no experiment of the project has its keys (model {config.model.name!r})")
    name = min(near, key=lambda k: len(near[k]))
    overrides = [f"--config.{key}={_value(plain, key)}" for key in near[name]]
    metric = f"{train.eval_name(config.eval_split)}_error_pct"
    rows = [] if overrides else [r for r in reported.ROWS if name in map(canonical, r.configs)]
    ended = datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC)
    return {
        column: str(value)
        for column, value in {
            "config": name,
            "overrides": shlex.join(overrides),
            "seed": summary["seed"],
            "paper_row": rows[0].name if rows else "",
            "metric": metric,
            "value": round(summary["test_error_pct"], 4),
            "reported": rows[0].value if rows else "",
            "epochs": summary["epochs"],
            "steps": summary["step"],
            "train_seconds": round(summary["train_seconds"], 3),
            "device": summary["device"],
            "devices": summary["devices"],
            "precision": config.precision,
            "versions": json.dumps(summary["versions"], sort_keys=True),
            "commit": summary["commit"] or "",
            "date": ended.date().isoformat(),
        }.items()
    }


def _value(plain: Mapping[str, Any], key: str) -> Any:
    """What stands under "optimizer.momentum", as the command line takes it: tuples, not lists."""

    def tuples(value: Any) -> Any:
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    return tuples(functools.reduce(operator.getitem, key.split("."), plain))


def training_result(row: Result, workdir: Path) -> Result | None:
    """`row` with the training error of the last epoch's updates, dropout on; None where metrics.jsonl has none."""
    try:
        rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        value = next(r["error_pct"] for r in reversed(rows) if r["split"] == "train" and r["step"] == int(row["steps"]))
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return None
    return row | {"paper_row": "", "metric": TRAINING, "value": str(round(value, 4)), "reported": ""}


def _keys(plain: Mapping[str, Any], where: str = "") -> set[str]:
    """Every key of a plain config that an override can set."""
    keys: set[str] = set()
    for key, value in plain.items():
        keys |= _keys(value, f"{where}{key}.") if isinstance(value, Mapping) else {where + key}
    return keys


def collect(workdirs: Iterable[Path], folder: Path) -> int:
    """Adds the rows of each finished run to the file of its experiment; a run that has them already adds none.

    Returns the number of rows added. Raises `UserError`, before anything is written, where one is no run directory.
    """

    def identity(row: Result) -> tuple[str, ...]:
        return tuple(row[column] for column in RUN_COLUMNS)

    known = {identity(row) for row in read(folder)}
    new: dict[Path, list[Result]] = {}
    found = [(tested, workdir) for workdir in workdirs if (tested := result(workdir))]
    for row in filter(None, [r for tested, workdir in found for r in (tested, training_result(tested, workdir))]):
        if identity(row) not in known:
            known.add(identity(row))
            new.setdefault(folder / f"{Path(row['config'].split(':')[0]).stem}.csv", []).append(row)
    folder.mkdir(parents=True, exist_ok=True)
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


def tables(results: Sequence[Result]) -> dict[str, str]:
    """Every generated table as Markdown, by the name that its place in a page has."""
    groups: dict[tuple[str, str], list[Result]] = {}
    training: dict[tuple[str, str], list[Result]] = {}
    for row in results:
        into = training if row["metric"] == TRAINING else groups
        into.setdefault((canonical(row["config"]), row["overrides"]), []).append(row)
    shown: set[str] = set()
    pages: dict[str, str] = {}

    def ours(config: str) -> list[Result]:
        shown.add(canonical(config))
        return groups.get((canonical(config), ""), [])

    head = "| method | dataset | reported % | ours % | ours - reported | device | training time | command |"
    for table in dict.fromkeys(row.table for row in reported.ROWS):
        lines = [head, "|" + "---|" * 8]
        for row in (r for r in reported.ROWS if r.table == table):
            value = f"{row.value:.2f}" if row.metric == "test_error_pct" else f"{row.value:g} ({_words(row.metric)})"
            printed = f"{row.method} | {row.dataset} | {value}"
            if not row.configs:
                lines.append(f"| {printed} | | | | | {row.without} |")
            for config in row.configs:
                rows = ours(config)
                difference = f"{_mean(rows) - row.value:+.2f}" if rows else ""
                lines.append(f"| {printed} | {_error(rows)} | {difference} | {_cost(rows)} | {command(config)} |")
        pages[table] = "\n".join(lines)

    def fitted(config: str, overrides: str = "") -> str:
        return _error(training.get((canonical(config), overrides), []), "")

    head = "| experiment | ours % | training error % | evaluated on | device | training time | command |"
    lines = [head, "|" + "---|" * 7]
    for config in (c for c in recipes() if c.startswith("experiments/ablations/") and ":" in c):
        name = config.removeprefix("experiments/ablations/").replace(".py:", ": ")
        on = recipes()[config]["eval_split"]
        rows = ours(config)
        lines.append(f"| {name} | {_error(rows)} | {fitted(config)} | `{on}` | {_cost(rows)} | {command(config)} |")
    pages["Ablations"] = "\n".join(lines)

    lines = ["| ours % | what | training error % | epochs | device | training time | command |", "|" + "---|" * 7]
    for (config, overrides), rows in groups.items():
        if overrides or config not in shown:
            what, epochs = _words(rows[0]["metric"]), float(rows[0]["epochs"])
            cells = (
                _error(rows),
                what,
                fitted(config, overrides),
                f"{epochs:g}",
                _cost(rows),
                command(config, overrides),
            )
            lines.append(f"| {' | '.join(cells)} |")
    pages["Reduced scale"] = "\n".join(lines) if len(lines) > 2 else "None has been recorded."

    lines = ["| dataset | paper | reported % | ours % | command |", "|" + "---|" * 5]
    for row in reported.PAPER:
        if row.method.startswith("NIN + Dropout"):
            config = row.configs[0]
            printed = f"{row.dataset}{', augmented' * row.method.endswith('Augmentation')} | {row.table}"
            lines.append(f"| {printed} | {row.value:.2f} | {_error(ours(config))} | {command(config)} |")
    pages["Results"] = "\n".join(lines)
    return pages


def command(config: str, overrides: str = "") -> str:
    """The exact command of a recipe, for a table."""
    text = f"python -m nin_jax.main --config={config} {overrides}".strip()
    return f"`{text}`".replace("|", r"\|")


def _words(metric: str) -> str:
    return metric.removesuffix("_pct").replace("_", " ")


def _mean(rows: Sequence[Result]) -> float:
    return statistics.fmean(float(row["value"]) for row in rows)


def _error(rows: Sequence[Result], none: str = "not run") -> str:
    """Mean and sample standard deviation over the runs, and their number."""
    if not rows:
        return none
    values = [float(row["value"]) for row in rows]
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{_mean(rows):.2f}{spread} (n = {len(rows)})"


def _cost(rows: Sequence[Result]) -> str:
    """The devices, and the mean time of training on them."""
    if not rows:
        return " | "
    devices = dict.fromkeys(f"{row['devices']} x {row['device']}" for row in rows)
    seconds = statistics.fmean(float(row["train_seconds"]) for row in rows)
    unit, size = next((u, s) for u, s in (("h", 3600), ("min", 60), ("s", 1)) if seconds >= 1.5 * s or s == 1)
    return f"{', '.join(devices)} | {seconds / size:.3g} {unit}"


PLACE = re.compile(r"(<!-- table: (.+?) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def fill(page: str, generated: Mapping[str, str]) -> str:
    """A page with the tables in the places that it has for them."""

    def place(match: re.Match[str]) -> str:
        if match[2] not in generated:
            raise UserError(f"there is no table {match[2]!r} to generate: {nearest(match[2], generated)}")
        return f"{match[1]}\n{generated[match[2]]}\n\n{match[3]}"

    return PLACE.sub(place, page)


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> None:
    """Runs the command line above, in a checkout."""
    parser = argparse.ArgumentParser(prog="python -m nin_jax.paper.tables", description=str(__doc__).splitlines()[0])
    parser.add_argument("--collect", nargs="+", default=[], type=Path, metavar="RUN_DIR", help="finished runs to add")
    workdirs = parser.parse_args(argv).collect
    for page in PAGES:
        if not (root / page).exists():
            raise UserError(f"{root / page} is missing; the tables are written in a checkout of the project")
    if workdirs:
        say(f"{collect(workdirs, root / RESULTS)} rows added to {root / RESULTS}")
    generated = tables(read(root / RESULTS))
    for page in PAGES:
        storage.write_whole(root / page, fill((root / page).read_text(), generated))


if __name__ == "__main__":
    try:
        main()
    except ExitError as ending:
        fail(str(ending))
        raise SystemExit(ending.exit_code) from None
