"""A run that hangs is ended, with its stacks; one that was stopped and goes on is not."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from nin_jax.devices.watchdog import Watchdog
from tests.faults import harness


@pytest.mark.slow
@pytest.mark.parametrize(
    ("at", "call"),
    [
        ("nin_jax.training.loop:Event.AFTER_UPDATES", 15),
        *(
            [("nin_jax.training.evaluate:host", 17), ("nin_jax.runs.checkpoint:ocp.Checkpointer.save", 2)]
            if harness.FULL
            else []
        ),
    ],
)
def test_a_run_that_hangs(at: str, call: int, tmp_path: Path, calm: Path, tally: Counter[str]) -> None:
    """Exit 75 after the patience of the config, the stack that shows where, and the run goes on bit for bit."""
    workdir = tmp_path / "run"
    patience = {"watchdog_seconds": 60.0}  # a slow machine may begin to train long after the first beat
    ended = harness.run(harness.words(workdir, **patience), {"at": at, "call": call, "do": "hang"})
    assert ended.code == 75, ended.err
    assert "no progress for" in ended.last
    assert re.search(r'tests/faults/child\.py", line \d+ in harm\b', ended.err), ended.err  # where it hangs
    harness.assert_resumes(workdir, calm)
    tally["exit 75 with stacks, then bit-equal"] += 1


CODE = """
import sys, time
from nin_jax.devices.watchdog import Watchdog
with Watchdog(3.0) as dog:
    for i in range(int(sys.argv[1])):
        dog.beat()
        if i == 0:
            print("beats", flush=True)
        time.sleep(0.1)
"""


def test_a_process_that_was_stopped_gets_its_time_anew(tally: Counter[str]) -> None:
    """SIGSTOP for twice the patience, then SIGCONT: it goes on."""
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, "15"],
        env=harness.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGSTOP)
    time.sleep(6)
    process.send_signal(signal.SIGCONT)
    ended = harness.finish(process)
    assert ended.code == 0, ended.err
    tally["goes on"] += 1


def test_patience() -> None:
    """Nothing before the first beat, nothing while it beats, and nothing without patience."""
    left: list[str] = []
    with Watchdog(0.0, lambda: left.append("without")) as idle, Watchdog(3.0, lambda: left.append("with")) as dog:
        time.sleep(3.5)
        idle.beat()
        for _ in range(10):
            dog.beat()
            time.sleep(0.35)
    assert not left
