"""docs/reliability.md's tables from table.py and the recorded counts: nothing between its marks is typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.faults import removals
from tests.faults.table import ROWS

DOC = Path(__file__).parents[2] / "docs" / "reliability.md"
RESULTS = Path(__file__).parent / "results"


def _read(name: str) -> dict[str, Any]:
    path = RESULTS / name
    return json.loads(path.read_text()) if path.exists() else {}


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rows])


def _outcome(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "not run in a campaign"
    if entry["failed"]:
        return f"**{entry['failed']} failed**"
    counted = "; ".join(f"{outcome}: {number}" for outcome, number in sorted(entry["outcomes"].items()))
    return counted or (f"{entry['passed']} passed" if entry["passed"] else "skipped")


def faults() -> str:
    """Fault, promise, and each test with its cases and what came of them."""
    counts = _read("campaign.json")
    rows = []
    for row in ROWS:
        tests = "<br>".join(f"`{test.split('/')[-1]}`: {_outcome(counts.get(test))}" for test in row.tests)
        rows.append([row.fault, row.promise, tests])
    return _markdown(["fault", "promise", "test: cases tried and outcome"], rows)


def others() -> str:
    """What others do, where it is known."""
    known = [row for row in ROWS if set(row.others) != {"?"}]
    head = ["fault", "nin_jax", "orbax 0.12", "MaxText", "Lightning 2", "big_vision"]
    return _markdown(head, [[row.fault, row.promise, *row.others] for row in known])


def removed() -> str:
    """Each protection, and the test that failed without it."""
    found = _read("removals.json")
    rows = [[r.protection, f"`{r.test.split('/')[-1]}`", found.get(r.protection, "not run")] for r in removals.REMOVALS]
    return _markdown(["protection removed", "test", "without it"], rows)


def render(text: str) -> str:
    """The page with its tables as they are now."""
    for mark, table in (("faults", faults), ("others", others), ("removals", removed)):
        begin, end = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
        before, rest = text.split(begin)
        text = f"{before}{begin}\n\n{table()}\n\n{end}{rest.split(end)[1]}"
    return text
