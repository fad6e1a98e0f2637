"""Short runs of a narrow network, as processes of their own, for the tests of the launchers."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

import nin_jax

ROOT = Path(__file__).parents[2]
PHOTOGRAPHS = Path(os.environ.get("NIN_JAX_TFDS", ROOT.parent / "shared" / "tfds"))
NARROW = {
    "seed": 3,
    "preprocess": ("gcn(scale=55)",),
    "augment": ("crop(pad=4)", "flip()"),
    "batch_size": 32,
    "epochs": 3,
    "checkpoint_every_epochs": 1,
    "model.kernels": (3, 3, 3),
    "model.widths": ((16, 8), (16, 8), (16,)),
    "optimizer.learning_rate": 0.05,
    "optimizer.learning_rate_factors": ("bias=2",),
}
SYNTHETIC = {"dataset": "synthetic", "train_split": "train[:320]", "eval_split": "test[:72]"}
CIFAR10 = {
    "dataset": "cifar10",
    "preprocess": ("gcn(scale=55)", "zca(eps=0.1)"),
    "train_split": "train[:320]",
    "eval_split": "train[1024:1124]",
}


def flags(workdir, **changes):
    """The command line of a narrow network, with every random part on."""
    return [
        "--config=experiments/cifar10.py",
        f"--workdir={workdir}",
        *(f"--config.{key}={value}" for key, value in (NARROW | changes).items()),
    ]


def start(workdir, env, *own, **changes):
    return launched(["-m", "launch.local", *own, "--", *flags(workdir, **changes)], env)


def launched(line, env):
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, *line], cwd=ROOT, env=env, stdout=pipe, stderr=pipe, text=True)


SLOWLY = """
import sys
from launch import command, local, processes
processes.MAIN = (sys.executable, "-m", "tests.faults.child", sys.argv.pop(1), "nin_jax.main")
command.run(local.launch)
"""


def slow_from(update, workdir):
    """Hooks that make a run take a second for each update from that one on, until `hurry`."""
    at = "nin_jax.training.loop:Event.AFTER_UPDATES"
    return json.dumps([{"at": at, "call": update, "do": "slow", "until": f"{workdir}.hurry"}])


def start_slowly(workdir, env, *own, **changes):
    """A run that has saved its first epoch, of ten updates, and is slow from there: what a test does happens in mid-run."""
    process = launched(["-c", SLOWLY, slow_from(12, workdir), *own, "--", *flags(workdir, **changes)], env)
    until((workdir / "checkpoints/10").is_dir)
    return process


def hurry(workdir, *gone):
    """From now on a slow run is as fast as any; first, processes of it that are to end have ended."""
    until(lambda: not any(Path(f"/proc/{process}").exists() for process in gone))
    Path(f"{workdir}.hurry").touch()


def until(condition):
    """Waits, but not for ever."""
    deadline = time.monotonic() + 900
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def run(workdir, env, *own, **changes):
    """The parameters that a run ends with."""
    process = start(workdir, env, *own, **changes)
    _, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    return params(workdir)


def params(workdir):
    return jax.tree.map(np.asarray, nin_jax.load_run(workdir).params)


def children(process):
    """Process ids of what a process has started, in order."""
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def wait_for_row(workdir):
    file = workdir / "metrics.jsonl"
    until(lambda: file.exists() and file.read_text())


def rows(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [(row["step"], row["split"]) for row in map(json.loads, lines)]


def equal(ours, theirs, atol):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol, err_msg=jax.tree_util.keystr(path))
