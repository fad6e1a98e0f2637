"""What only an accelerator can show. Where there is one:

JAX_PLATFORMS=cuda XLA_PYTHON_CLIENT_PREALLOCATE=false python -m pytest -m accelerator -n 8
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import nin_jax
from benchmarks.runs import Ours
from nin_jax import config as config_lib
from nin_jax.devices.mesh import host

pytestmark = [
    pytest.mark.accelerator,
    pytest.mark.skipif(jax.default_backend() == "cpu", reason="no accelerator is in use: set JAX_PLATFORMS"),
]

# Every experiment but folder.py, whose network depends on the folder.
EXPERIMENTS = [name for name in config_lib.experiments() if "/" not in name and name != "folder"]
# Sums of many threads in an order that is always the same; without it two runs on a GPU are not equal bit for bit.
DETERMINISTIC = {"XLA_FLAGS": "--xla_gpu_deterministic_ops=true"} if jax.default_backend() == "gpu" else {}


@pytest.mark.parametrize(("mapper", "precision"), [("pmap", "float32"), ("shard_map", "bfloat16")])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_makes_twenty_updates(name: str, mapper: str, precision: str) -> None:
    """At its own size, on noise, several updates a dispatch; the host hands over nothing that it is not asked for."""
    config = config_lib.experiment(name)
    config.mapper, config.precision = mapper, precision
    began = time.perf_counter()
    ours = Ours(config_lib.check(config), 4 * config.batch_size)
    print(f"{name}, {mapper}, {precision}: compiled in {time.perf_counter() - began:.1f} s")
    with jax.transfer_guard("disallow"):
        losses = np.concatenate([host(ours.dispatch())["loss"] for _ in range(5)])
    assert len(losses) == 20
    assert np.isfinite(losses).all()
    assert int(ours.state.step) == 20
    assert np.isfinite(ours.evaluate()["loss"])


def command(workdir: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "nin_jax.main", "--config=experiments/digits.py", f"--workdir={workdir}", *flags]


def rows(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_an_epoch_is_that_of_a_cpu(tmp_path: Path, clean_env: dict[str, str]) -> None:
    """22 updates of the digits' network in float32: the same losses, up to the order of sums."""
    env = {**clean_env, "JAX_NUM_CPU_DEVICES": str(jax.device_count())}
    for workdir, platform in ((tmp_path / "cpu", "cpu"), (tmp_path / "here", os.environ["JAX_PLATFORMS"])):
        subprocess.run(command(workdir, "--config.epochs=1"), env={**env, "JAX_PLATFORMS": platform}, check=True)
    theirs, ours = rows(tmp_path / "cpu"), rows(tmp_path / "here")
    assert [row["split"] for row in ours] == ["train", "test"]
    for one, other in zip(theirs, ours, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-3)


def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path, clean_env: dict[str, str]) -> None:
    env = {**clean_env, **DETERMINISTIC}
    flags = "--config.epochs=60", "--config.eval_every_epochs=60"
    subprocess.run(command(tmp_path / "whole", *flags), env=env, check=True)
    killed = subprocess.Popen(command(tmp_path / "killed", *flags), env=env)
    while len(list((tmp_path / "killed/checkpoints").glob("[0-9]*"))) < 2:
        assert killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    assert killed.wait() == -9
    assert not (tmp_path / "killed/summary.json").exists()
    subprocess.run(command(tmp_path / "killed", *flags), env=env, check=True)
    both = [flatten_dict(nin_jax.load_run(tmp_path / name).params) for name in ("whole", "killed")]
    for path, value in both[0].items():
        np.testing.assert_array_equal(value, both[1][path], str(path))
