"""Nothing that concerns the whole process is changed but by the command, and by one function."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import harness

PROGRAM = """
import json, logging, sys, warnings
import jax
import numpy as np

def process():
    names = [None, "absl", "asyncio", "jax", *sorted(logging.root.manager.loggerDict)]
    return {
        "levels": {str(n): logging.getLogger(n).level for n in names if n is None or "." not in str(n)},
        "hooks": [sys.unraisablehook is sys.__unraisablehook__, sys.excepthook is sys.__excepthook__],
        "filters": [str(f) for f in warnings.filters if "PIL" not in str(f)],
        "jax": {k: str(v) for k, v in jax.config.values.items()},
    }

before = process()
import nin_jax
run = nin_jax.load_run(sys.argv[1])
run(np.zeros((2, 16, 16, 3), np.uint8))
after = process()
changed = {k: [before[k], after[k]] for k in before if k != "levels" and before[k] != after[k]}
levels = {n: [v, after["levels"][n]] for n, v in before["levels"].items() if v != after["levels"][n]}
print(json.dumps([changed, levels]))
"""


@pytest.mark.slow
def test_a_notebook_keeps_its_process(tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    ended = harness.run(harness.words(workdir, epochs=1))
    assert ended.code == 0, ended.err
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(workdir)],
        env=harness.environment(),
        capture_output=True,
        text=True,
        timeout=harness.SECONDS,
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1]) == [{}, {}]
