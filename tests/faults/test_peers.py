"""One of two processes goes: the other one ends in bounded time, and the pair, or one alone, goes on with the very same run."""

from __future__ import annotations

import signal
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import nin_jax
from launch import local
from tests.faults import harness

SECONDS = 300  # in which the other one has to end: JAX takes 60 to miss a process, and this machine may be slow


def start_pair(
    workdir: Path, hooked: int = 0, *hooks: dict[str, Any], other: Sequence[dict[str, Any]] = (), **changes: Any
) -> list[subprocess.Popen]:
    """The two processes of a run, without a launcher; one of them with hooks, and with those of `other` the other one."""
    arguments = harness.words(workdir, **changes)
    envs = local.environments(2, 1, [])
    return [harness.start(arguments, *(hooks if i == hooked else other), **env) for i, env in enumerate(envs)]


def run_pair(workdir: Path, **changes: Any) -> list[harness.Ended]:
    """Both, to their end."""
    return [harness.finish(process) for process in start_pair(workdir, **changes)]


@pytest.fixture(scope="module")
def calm_pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two processes that nobody disturbs."""
    workdir = tmp_path_factory.mktemp("pair") / "run"
    for ended in run_pair(workdir):
        assert ended.code == 0, ended.err
    return workdir


def in_update(do: str, **more: Any) -> dict[str, Any]:
    return {"at": "nin_jax.training.loop:Event.AFTER_UPDATES", "call": 15, "do": do, **more}


@pytest.mark.slow
@pytest.mark.parametrize("who", [1, 0])
def test_a_process_is_killed(who: int, tmp_path: Path, calm_pair: Path, tally: Counter[str]) -> None:
    """The other one says so and ends with 75, or JAX aborts it where the first one is gone; both go on, bit for bit."""
    pair = start_pair(tmp_path, who, in_update("signal", number=signal.SIGKILL))
    assert harness.finish(pair[who]).code == -signal.SIGKILL
    other = harness.finish(pair[1 - who], SECONDS)
    if other.code == 75:
        assert "another process of this run is gone; start again to resume" in other.last, other.err
        assert other.clean(), other.err
    else:
        assert (who, other.code) == (0, -signal.SIGABRT), other.err
    assert [ended.code for ended in run_pair(tmp_path)] == [0, 0]
    harness.assert_same_run(tmp_path, calm_pair)
    tally[f"the other one ended with {other.code}; bit-equal"] += 1


@pytest.mark.slow
@pytest.mark.parametrize("who", [1, 0] if harness.FULL else [0])
def test_a_process_is_stopped(who: int, tmp_path: Path, calm_pair: Path, tally: Counter[str]) -> None:
    """SIGSTOP: the other one's watchdog ends it with 75; both go on, bit for bit."""
    # A slow machine may begin to train long after the first beat. JAX, whose own patience ends between a half and the
    # whole of its 60 s, by SIGABRT, has more here.
    patience = {"watchdog_seconds": 60.0}
    heartbeat = {"at": "nin_jax.devices.processes:join", "call": 1, "do": "set", "name": "HEARTBEAT_SECONDS", "to": 600}
    stop = in_update("signal", number=signal.SIGSTOP)
    pair = start_pair(tmp_path, who, heartbeat, stop, other=[heartbeat], **patience)
    try:
        other = harness.finish(pair[1 - who])
        assert other.code == 75, other.err
        assert "no progress for" in other.last, other.err
    finally:
        pair[who].kill()
        pair[who].communicate()
    assert [ended.code for ended in run_pair(tmp_path)] == [0, 0]
    harness.assert_same_run(tmp_path, calm_pair)
    tally["the other one ended with 75; bit-equal"] += 1


@pytest.mark.slow
@pytest.mark.parametrize("who", [1, 0] if harness.FULL else [1])
def test_a_process_is_preempted(who: int, tmp_path: Path, calm_pair: Path, tally: Counter[str]) -> None:
    """SIGTERM to one: both save the same step and end with 75."""
    pair = start_pair(tmp_path, who, in_update("signal", number=signal.SIGTERM), epochs=400)
    ended = [harness.finish(process) for process in pair]
    assert [e.code for e in ended] == [75, 75], ended
    step = harness.steps(tmp_path)[-1]
    assert f"SIGTERM: saved step {step} of 4000" in ended[0].err
    assert step > 15
    tally["both ended with 75"] += 1


@pytest.mark.slow
def test_another_number_of_processes_goes_on(tmp_path: Path, calm_pair: Path, tally: Counter[str]) -> None:
    """What two have begun one ends, on as many devices: equal to rounding, every row once."""
    pair = start_pair(tmp_path, 1, in_update("signal", number=signal.SIGKILL))
    for process in pair:
        harness.finish(process, SECONDS)
    compiled = harness.environment()["XLA_FLAGS"]
    forced = {"XLA_FLAGS": f"{compiled} --xla_force_host_platform_device_count=2", "NPROC": "16"}
    ended = harness.run(harness.words(tmp_path), **forced)
    assert ended.code == 0, ended.err
    assert "resuming from step 10" in ended.err
    one, other = (nin_jax.load_run(str(workdir)).params for workdir in (tmp_path, calm_pair))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), one, other)
    assert [(r["step"], r["split"]) for r in harness.rows(tmp_path)] == [
        (r["step"], r["split"]) for r in harness.rows(calm_pair)
    ]
    tally["equal to 1e-6"] += 1
