"""Takes one protection at a time out, and looks whether its test fails without it.

python -m tests.faults.removals [WORD ...]     those with a word in their test's name; all without

A protection is a named function or constant of the package, which is replaced in every process that the test starts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results" / "removals.json"


class Removal(NamedTuple):
    """A protection, the name "module:attribute" that stands for it, what replaces that, and the test that has to fail then."""

    protection: str
    name: str
    replacement: str
    test: str


REMOVALS = (
    Removal(
        "a checkpoint's checksums are compared",
        "nin_jax.runs.checkpoint:_crc",
        "lambda content: ''",
        "tests/training/test_loop.py::test_no_harm_to_any_file_is_silent",
    ),
    Removal(
        "a checkpoint says which config it is of",
        "nin_jax.training.start:check_config",
        "lambda *_: None",
        "tests/faults/test_checkpoints.py::test_a_checkpoint_of_another_run",
    ),
    Removal(
        "state that is not finite is not saved",
        "nin_jax.training.programs:Programs.finite",
        "lambda self, state: True",
        "tests/faults/test_divergence.py::test_parameters_that_are_not_finite_are_never_saved",
    ),
    Removal(
        "an error that may pass is tried again",
        "nin_jax.storage:retry",
        "lambda attempt, may_pass: attempt()",
        "tests/faults/test_storage.py::test_what_is_tried_again",
    ),
    Removal(
        "metrics.jsonl takes each row once",
        "nin_jax.storage:write_whole",
        "lambda path, content: path.touch()",
        "tests/training/test_loop.py::test_the_clock_and_the_record_survive",
    ),
    Removal(
        "no module is imported by a name in config.json",
        "nin_jax.config:modules",
        "lambda config: []",
        "tests/faults/test_security.py::test_no_module_is_imported_by_a_name_in_a_config",
    ),
    Removal(
        "a picture's pixels are limited",
        "nin_jax.data.pictures:PIXELS",
        "10**12",
        "tests/faults/test_security.py::test_the_pixels_of_a_record_are_limited",
    ),
    Removal(
        "a watchdog forgives the time that the process was stopped",
        "nin_jax.devices.watchdog:was_stopped",
        "lambda slept, pause: False",
        "tests/faults/test_watchdog.py::test_a_process_that_was_stopped_gets_its_time_anew",
    ),
)


def without(removal: Removal) -> dict[str, str]:
    """The environment in which a process and its children do not have the protection."""
    folders = [str(Path(__file__).parent / "without"), str(ROOT)]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(folders),
        "NIN_JAX_WITHOUT": json.dumps([*removal.name.split(":"), removal.replacement]),
    }


def fails_without(removal: Removal) -> bool:
    """Whether the test fails without the protection."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "", "-p", "no:cacheprovider", removal.test]
    done = subprocess.run(command, cwd=ROOT, env=without(removal), capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.returncode == 1


if __name__ == "__main__":
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    found = {r.protection: found[r.protection] for r in REMOVALS if r.protection in found}
    for one in REMOVALS:
        if not sys.argv[1:] or any(word in one.test for word in sys.argv[1:]):
            found[one.protection] = "fails" if fails_without(one) else "**passes**"
            print(one.protection, found[one.protection], flush=True)
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
