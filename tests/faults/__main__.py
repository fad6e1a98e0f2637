"""The whole campaign, or a part of it, with its counts written down; and the table made from them.

python -m tests.faults [PYTEST ARGUMENT ...]     runs the tests of every row, all cases
python -m tests.faults --add TEST ...            adds to what was counted before: a long test in pieces (NIN_JAX_FAULTS_KILLS=25)
python -m tests.faults --page                    writes docs/reliability.md's tables from tests/faults/results/*.json
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from nin_jax.runs.provenance import commit, versions

ROOT = Path(__file__).parents[2]
COUNTS = Path(__file__).parent / "results" / "campaign.json"


class Recorder:
    """A pytest plugin that adds up, for each test function, what its tally counted, or else how many cases passed."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, Any]] = defaultdict(
            lambda: {"passed": 0, "failed": 0, "skipped": 0, "seconds": 0.0, "outcomes": {}}
        )

    def pytest_runtest_logreport(self, report: Any) -> None:
        one = self.found[report.nodeid.split("[")[0]]
        one["seconds"] = round(one["seconds"] + report.duration, 1)
        if report.when == "call" or report.outcome != "passed":
            one[report.outcome] += 1
        if report.when == "teardown":
            for outcome, number in report.user_properties:
                one["outcomes"][outcome] = one["outcomes"].get(outcome, 0) + number


def campaign(arguments: list[str]) -> int:
    """Runs the tests and merges what they counted into results/campaign.json; a test that was run replaces its entry."""
    os.environ["NIN_JAX_FAULTS"] = "full"
    import pytest

    from nin_jax import storage
    from tests.faults.table import ROWS

    add, arguments = "--add" in arguments, [a for a in arguments if a != "--add"]
    chosen = [a for a in arguments if "::" in a or a.endswith(".py")]
    tests = chosen or sorted({test for row in ROWS for test in row.tests})
    recorder, began = Recorder(), time.time()
    code = pytest.main(
        ["-m", "", *(a for a in arguments if a not in chosen), "-p", "no:cacheprovider", *tests], plugins=[recorder]
    )
    entries = json.loads(COUNTS.read_text()) if COUNTS.exists() else {}
    environment = {
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "jax": versions()["jax"],
    }
    for test, found in recorder.found.items():
        entries[test] = (summed(entries[test], found) if add and test in entries else found) | environment
    COUNTS.parent.mkdir(exist_ok=True)
    storage.write_json(COUNTS, entries)
    print(f"{len(recorder.found)} tests in {time.time() - began:.0f} s; counts in {COUNTS.relative_to(ROOT)}")
    return int(code)


def summed(before: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """The counts of two pieces of a test."""
    counts = Counter(before["outcomes"]) + Counter(found["outcomes"])
    numbers = {name: round(before[name] + found[name], 1) for name in ("passed", "failed", "skipped", "seconds")}
    return {**numbers, "outcomes": dict(counts)}


if __name__ == "__main__":
    if sys.argv[1:] == ["--page"]:
        from tests.faults import page

        page.DOC.write_text(page.render(page.DOC.read_text()))
    else:
        sys.exit(campaign(sys.argv[1:]))
