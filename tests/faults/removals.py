"""Takes one protection at a time out of a copy of the package, and looks whether its test fails without it.

python -m tests.faults.removals
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results" / "removals.json"


class Removal(NamedTuple):
    """A protection, as text of a file of the package that becomes another, and the test that has to fail then."""

    protection: str
    file: str
    before: str
    after: str
    test: str


REMOVALS = (
    Removal(
        "a checkpoint's checksums are compared",
        "runs/checkpoint.py",
        "if wanted.get(path) != got.get(path):",
        "if False:",
        "tests/training/test_loop.py::test_no_harm_to_any_file_is_silent",
    ),
    Removal(
        "a checkpoint says which config it is of",
        "training/loop.py",
        'check_config(notes.get("config"), self.config,',
        "check_config(None, self.config,",
        "tests/faults/test_checkpoints.py::test_a_checkpoint_of_another_run",
    ),
    Removal(
        "state that is not finite is not saved",
        "training/loop.py",
        "if not all(np.isfinite(a).all() for a in",
        "if False and not all(np.isfinite(a).all() for a in",
        "tests/faults/test_divergence.py::test_parameters_that_are_not_finite_are_never_saved",
    ),
    Removal(
        "an error that may pass is tried again",
        "storage.py",
        "isinstance(error, OSError) and error.errno not in FOR_GOOD",
        "False",
        "tests/faults/test_storage.py::test_what_is_tried_again",
    ),
    Removal(
        "metrics.jsonl takes each row once",
        "runs/record.py",
        "in_time = key[0] <= step and key not in self.done",
        "in_time = True",
        "tests/training/test_loop.py::test_the_clock_and_the_record_survive",
    ),
    Removal(
        "no module is imported by a name in config.json",
        "training/load.py",
        "if (outside := config_lib.modules(config)) and not trust:",
        "if (outside := config_lib.modules(config)) and False:",
        "tests/faults/test_security.py::test_no_module_is_imported_by_a_name_in_a_config",
    ),
    Removal(
        "a picture's pixels are limited",
        "data/pictures.py",
        "if picture.width * picture.height > PIXELS:",
        "if False:",
        "tests/faults/test_security.py::test_the_pixels_of_a_record_are_limited",
    ),
    Removal(
        "a watchdog forgives the time that the process was stopped",
        "devices/watchdog.py",
        "if now - looked > 2 * pause + 1:",
        "if False:",
        "tests/faults/test_watchdog.py::test_a_process_that_was_stopped_gets_its_time_anew",
    ),
)


def fails_without(removal: Removal) -> bool:
    """Whether the test fails in a copy of the project without the protection."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        copy.mkdir()
        shutil.copy(ROOT / "pyproject.toml", copy)
        for name in ("nin_jax", "tests", "experiments", "benchmarks"):
            shutil.copytree(ROOT / name, copy / name)
        file = copy / "nin_jax" / removal.file
        text = file.read_text()
        assert text.count(removal.before) == 1, (removal.file, removal.before)
        file.write_text(text.replace(removal.before, removal.after))
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", removal.test],
            cwd=copy,
            env=os.environ | {"PYTHONPATH": str(copy)},
            capture_output=True,
            text=True,
        )
        assert done.returncode in (0, 1), done.stdout + done.stderr
        return done.returncode == 1


if __name__ == "__main__":
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for one in REMOVALS:
        if not sys.argv[1:] or any(word in one.test for word in sys.argv[1:]):
            found[one.protection] = "fails" if fails_without(one) else "**passes**"
            print(one.protection, found[one.protection], flush=True)
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
