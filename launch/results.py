"""The results of a sweep: results.csv with a row per trial, summary.md with a line per setting, and results.png.

All three are regenerated from the run directories (and, for a search, Optuna's journal) whenever a trial ends, so killing
a process loses no results.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import math
import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch import trial as trials
from launch.trial import Trial
from nin_jax import storage
from nin_jax.errors import UserError
from nin_jax.paper import tables

COLUMNS = ["trial", "status", *tables.COLUMNS]

Result = dict[str, str]

FINAL = "final"  # name of the run with the best setting


def row(trial: Trial, directory: Path, status: str | None = None) -> Result | None:
    """The row of a trial that has ended as "done", "diverged", "pruned" or "failed"; None for one that has not.

    Columns are the trial's name and status, then those of `nin_jax.paper.tables`. Only a "done" trial has a final error;
    the "value" of another is that of its last evaluation.
    """
    workdir = trial.workdir(directory)
    summary = trials.summary(workdir)
    status = summary.get("status") or status
    if status is None:
        return None
    if status == "done":
        try:
            found = tables.result(workdir)
        except UserError:  # its experiment is not one of the project's
            found = None
        if found:
            return {"trial": trial.name, "status": status, **found}
    words = dict(word.removeprefix("--").split("=", 1) for word in trial.words() if "=" in word)
    evaluated = [r for r in trials.rows(workdir) if r["split"] != "train"]
    last: dict[str, Any] = evaluated[-1] if evaluated else {}
    overrides = [f"--{k}={v}" for k, v in words.items() if k not in ("config", "config.seed")]
    known = {
        "trial": trial.name,
        "status": status,
        "config": words.get("config", ""),
        "overrides": shlex.join(overrides),
        "seed": words.get("config.seed", ""),
        "metric": f"{last['split']}_error_pct" if last else "",
        "value": round(summary.get("test_error_pct") or last.get("error_pct", math.nan), 4) if last else "",
        "epochs": last.get("epoch", ""),
        "steps": last.get("step", ""),
    }
    return {column: str(known.get(column, "")) for column in COLUMNS}


def collect(
    plan: Sequence[Trial], directory: Path, statuses: Mapping[str, str] | None = None
) -> list[tuple[Trial, Result]]:
    """The trials that have ended, each with its row.

    Args:
      statuses: the status, by name, of trials that ended without a summary.
    """
    found = ((trial, row(trial, directory, (statuses or {}).get(trial.name))) for trial in plan)
    return [(trial, result) for trial, result in found if result]


def write(ended: Sequence[tuple[Trial, Result]], planned: int, directory: Path) -> None:
    """Writes results.csv, summary.md and, with Matplotlib, results.png."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(result for _, result in ended)
    storage.write_whole(directory / "results.csv", text.getvalue())
    storage.write_whole(directory / "summary.md", summarise(ended, planned))
    if importlib.util.find_spec("matplotlib") and any(r["status"] == "done" and t.name != FINAL for t, r in ended):
        draw(ended, directory / "results.png")


def setting(trial: Trial) -> dict[str, Any]:
    """The flags that set a trial apart, without its seed."""
    return {key: value for key, value in trial.flags.items() if key != "config.seed"}


def best(ended: Sequence[tuple[Trial, Result]]) -> tuple[dict[str, Any], list[float]] | None:
    """The setting with the lowest mean error, among those with all seeds done, and its errors."""
    return next(((one, errors) for one, errors, others in _settings(ended) if errors and not others), None)


def summarise(ended: Sequence[tuple[Trial, Result]], planned: int) -> str:
    """A table with a line for each setting, best first."""
    metric = next((r["metric"] for _, r in ended if r["status"] == "done"), "error")
    lines = [
        f"{len(ended)} of {planned} trials have ended.",
        "",
        f"| setting | {metric} | n | not done |",
        "|---|---|---|---|",
    ]
    for one, errors, others in _settings(ended):
        spread = f" ± {statistics.stdev(errors):.2f}" if len(errors) > 1 else ""
        mean = f"{statistics.fmean(errors):.2f}{spread}" if errors else ""
        lines.append(f"| {_words(one)} | {mean} | {len(errors)} | {', '.join(others)} |")
    first = best(ended)
    if first:
        lines += ["", f"Best: {_words(first[0])}, {statistics.fmean(first[1]):.2f}."]
    lines += [f"Final: {r['metric']} {r['value']}, {r['status']}." for trial, r in ended if trial.name == FINAL]
    return "\n".join(lines) + "\n"


def draw(ended: Sequence[tuple[Trial, Result]], file: Path) -> None:
    """A panel for each flag that varies: its values against the error of each finished trial."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.use("agg")
    done = [(trial, float(r["value"])) for trial, r in ended if r["status"] == "done" and trial.name != FINAL]
    keys = list(dict.fromkeys(key for trial, _ in done for key in trial.flags))
    figure = Figure(figsize=(3.2 * len(keys), 3.2), layout="constrained")
    panels = figure.subplots(1, len(keys), sharey=True, squeeze=False)[0]
    for panel, key in zip(panels, keys, strict=True):
        points = [(trial.flags[key], error) for trial, error in done if key in trial.flags]
        numbers = [_number(value) for value, _ in points]
        if all(n is not None for n in numbers):
            x: list[Any] = numbers
            positive = [n for n in numbers if n]
            if len(positive) == len(numbers) and min(positive) > 0 and max(positive) / min(positive) >= 20:
                panel.set_xscale("log")
        else:
            x = [str(value) for value, _ in points]
        panel.plot(x, [error for _, error in points], "o", alpha=0.7)
        panel.set_xlabel(key.removeprefix("config."))
    panels[0].set_ylabel("error, %")
    figure.savefig(file, dpi=120)


def _settings(ended: Sequence[tuple[Trial, Result]]) -> list[tuple[dict[str, Any], list[float], list[str]]]:
    """(setting, errors of its finished trials, statuses of the others), lowest mean first."""
    groups: dict[str, tuple[dict[str, Any], list[float], list[str]]] = {}
    for trial, result in ended:
        if trial.name == FINAL:  # measured on other data
            continue
        one = setting(trial)
        _, errors, others = groups.setdefault(json.dumps(one, default=str), (one, [], []))
        if result["status"] == "done":
            errors.append(float(result["value"]))
        else:
            others.append(result["status"])
    return sorted(groups.values(), key=lambda g: statistics.fmean(g[1]) if g[1] else math.inf)


def _words(one: Mapping[str, Any]) -> str:
    text = ", ".join(f"{key.removeprefix('config.')}={value}" for key, value in one.items())
    return text.replace("|", r"\|") or "all"


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
