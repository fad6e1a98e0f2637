"""Tables that are generated into a page of the documentation, between two marks, and what stands in their cells.

<!-- table: NAME -->
<!-- end of table -->
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nin_jax import storage
from nin_jax.errors import UserError, nearest
from nin_jax.training import pretrained

# What a network's file says of its run agrees with the run's row in these.
SAME = ("value", "epochs", "device", "devices", "precision", "seed")

PLACE = re.compile(r"(<!-- table: (.+?) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def markdown(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(map(str, row))} |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def fill(page: str, generated: Mapping[str, str]) -> str:
    """The text of a page with its tables replaced by the `generated` ones.

    Raises `UserError` for a mark without a table.
    """

    def place(match: re.Match[str]) -> str:
        if match[2] not in generated:
            raise UserError(f"there is no table {match[2]!r} to generate: {nearest(match[2], generated)}")
        return f"{match[1]}\n{generated[match[2]]}\n\n{match[3]}"

    return PLACE.sub(place, page)


def write(file: Path, generated: Mapping[str, str]) -> None:
    """Replaces the tables in a page."""
    storage.write_whole(file, fill(file.read_text(), generated))


def words(metric: str) -> str:
    """A metric's name in a table: "test error" for "test_error_pct"."""
    return metric.removesuffix("_pct").replace("_", " ")


def mean(rows: Sequence[Mapping[str, str]]) -> float:
    """Of the values of recorded rows."""
    return statistics.fmean(float(row["value"]) for row in rows)


def error(rows: Sequence[Mapping[str, str]]) -> str:
    """Mean and sample standard deviation over the runs, their number, and the precision where it is not float32."""
    if not rows:
        return "not run"
    values = [float(row["value"]) for row in rows]
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    precisions = "".join(f", {name}" for name in sorted({row["precision"] for row in rows} - {"float32"}))
    return f"{mean(rows):.2f}{spread} (n = {len(rows)}{precisions})"


def cost(rows: Sequence[Mapping[str, str]]) -> tuple[str, str]:
    """The devices, and the mean training time on them."""
    if not rows:
        return "", ""
    devices = dict.fromkeys(f"{row['devices']} x {' '.join(dict.fromkeys(row['device'].split()))}" for row in rows)
    seconds = statistics.fmean(float(row["train_seconds"]) for row in rows)
    unit, size = next((u, s) for u, s in (("h", 3600), ("min", 60), ("s", 1)) if seconds >= 1.5 * s or s == 1)
    return ", ".join(devices), f"{seconds / size:.3g} {unit}"


def commits(rows: Sequence[Mapping[str, str]]) -> str:
    """Those of the recorded runs, in seven digits."""
    return ", ".join(sorted({row["commit"][:7] for row in rows if row["commit"]}))


def kept(rows: Sequence[Mapping[str, str]]) -> str:
    """The network of the package that one of the runs has trained, and the error of its file; "" if there is none."""
    facts = [json.loads((pretrained.FOLDER / name / pretrained.CONFIG).read_text()) for name in pretrained.names()]

    def trained(f: Mapping[str, Any], row: Mapping[str, str]) -> bool:
        recipe = command(row["config"], row["overrides"]).strip("`")
        return f["recipe"] == recipe and all(str(f["trained"][key]) == row[key] for key in SAME)

    return ", ".join(f"{f['error_pct']:.2f} (`{f['name']}`)" for f in facts if any(trained(f, row) for row in rows))


def command(config: str, overrides: str = "") -> str:
    """The exact command of a recipe, for a table."""
    text = f"python -m nin_jax.main --config={config} {overrides}".strip()
    return f"`{text}`".replace("|", r"\|")
