"""The Slurm launcher on a real Slurm of this one host, whose daemons the tests start and stop."""

import shlex
import subprocess
import sys
import time

import pytest

from launch import slurm
from nin_jax.errors import UserError
from tests.launch import slurm_cluster
from tests.launch.runs import ROOT, SYNTHETIC, equal, flags, hurry, params, rows, slow_from, until, wait_for_row


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    try:
        cluster = slurm_cluster.Cluster(tmp_path_factory.mktemp("slurm"))
        cluster.start()
    except slurm_cluster.NoSlurm as error:
        pytest.skip(str(error))
    yield cluster
    cluster.stop()


def submit(cluster, workdir, *own, **changes):
    """Submits a run of two tasks with two devices each; returns the job's number."""
    env = cluster.env | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    own = ("--tasks_per_node=2", *own)
    line = [sys.executable, "-m", "launch.slurm", *own, "--", *flags(workdir, **SYNTHETIC, **changes)]
    done = subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def submit_slowly(cluster, workdir, **changes):
    """A run that is slow after its first row, so that it is in the middle of it, on any machine, when it is told to stop."""
    python = workdir.with_name("python")  # the script calls it as `python -m nin_jax.main ...`
    child = shlex.join([sys.executable, "-m", "tests.faults.child", slow_from(12, workdir), "nin_jax.main"])
    python.write_text(f'#!/bin/sh\nshift 2\nexec {child} "$@"\n')
    python.chmod(0o755)
    return submit(cluster, workdir, f"--python={python}", **changes)


def hurry_once_saved(workdir, job):
    """Lets a slow run go on quickly after its next start."""
    output = workdir / "logs" / f"slurm-{job}.out"
    until(lambda: "SIGTERM: saved step" in output.read_text())
    hurry(workdir)


def wait(cluster, job, workdir):
    """The job's last state; its output when that is not the one hoped for."""
    deadline = time.monotonic() + 1800
    while (state := cluster.job(job)["JobState"]) in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED"):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert state == "COMPLETED", (workdir / "logs" / f"slurm-{job}.out").read_text()[-3000:]


@pytest.mark.slow
def test_a_requeued_job_ends_as_an_undisturbed_one(cluster, tmp_path):
    """Two tasks find each other under srun; `scontrol requeue` in mid-run costs nothing, bit for bit."""
    wait(cluster, submit(cluster, tmp_path / "calm", epochs=8), tmp_path / "calm")
    job = submit_slowly(cluster, tmp_path / "run", epochs=8)
    wait_for_row(tmp_path / "run")
    cluster.run("scontrol", "requeue", job)
    hurry_once_saved(tmp_path / "run", job)
    wait(cluster, job, tmp_path / "run")
    said = (tmp_path / "run" / "logs" / f"slurm-{job}.out").read_text()
    assert "SIGTERM: saved step" in said
    assert "resuming from step" in said
    assert cluster.job(job)["Restarts"] == "1"
    equal(params(tmp_path / "run"), params(tmp_path / "calm"), 0)
    assert rows(tmp_path / "run") == rows(tmp_path / "calm")


@pytest.mark.slow
def test_a_job_stopped_by_its_signal_puts_itself_back(cluster, tmp_path):
    """As two minutes before its time is over: the tasks leave with 75, and the script requeues the job."""
    job = submit_slowly(cluster, tmp_path / "run", epochs=8)
    wait_for_row(tmp_path / "run")
    cluster.run("scancel", "--signal=TERM", job)
    hurry_once_saved(tmp_path / "run", job)
    wait(cluster, job, tmp_path / "run")
    assert cluster.job(job)["Restarts"] == "1"
    assert "resuming from step" in (tmp_path / "run" / "logs" / f"slurm-{job}.out").read_text()


@pytest.mark.parametrize(
    "own",
    [
        (),
        ("--nodes=4", "--tasks_per_node=8", "--gpus_per_node=8", "--time=24:00:00", "--partition=gpu"),
        ("--container=my images/nin.sif", "--gpus_per_node=1", "--sbatch=--account=me", "--cpus_per_task=4"),
    ],
)
def test_a_dry_run_shows_a_script_without_a_fault(own, tmp_path, capsys):
    """shellcheck has nothing to say, and every option is there."""
    with_spaces = tmp_path / "a run"
    assert slurm.launch([*own, "--dry_run", "--", "--config=digits", f"--workdir={with_spaces}"]) == 0
    script = tmp_path / "slurm.sh"
    script.write_text(capsys.readouterr().out)
    checked = subprocess.run(["shellcheck", script], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    assert not with_spaces.exists()
    for option in own:
        assert option.removeprefix("--sbatch=--").split("=")[-1] in script.read_text()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("-- --config=nowhere", "no such file"),
        ("--gpus_per_node=4 -- --config=digits", "one process a GPU"),
        ("--nodes=0 -- --config=digits", "nodes"),
    ],
)
def test_a_mistake_costs_one_line(line, said):
    """Before anything is written."""
    with pytest.raises(UserError, match=said):
        slurm.launch(line.split())
