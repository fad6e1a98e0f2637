"""A run as a Slurm job.

python -m launch.slurm --nodes=2 --tasks_per_node=8 --gpus_per_node=8 --time=24:00:00 [--partition=NAME]
                       [--container=IMAGE | --python=PATH] [--sbatch=--account=NAME ...] [--dry_run]
                       -- --config=experiments/NAME.py --workdir=SHARED_DIR ...

Writes WORKDIR/slurm.sh and submits it. The tasks find each other through what srun tells them; JAX gives each task one
GPU of its node. Two minutes before the time is over, and when the job is preempted or requeued, all tasks save and leave
with 75; then the job goes back into the queue and goes on from there when its turn comes.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from launch import command
from nin_jax import main
from nin_jax.console import say
from nin_jax.errors import UserError, one_line
from nin_jax.storage import write_whole

FLAGS = flags.FlagValues()
flags.DEFINE_integer("nodes", 1, "Nodes.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("tasks_per_node", 1, "Processes on each: one a GPU.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("gpus_per_node", 0, "GPUs of each node; 0: CPUs only.", lower_bound=0, flag_values=FLAGS)
flags.DEFINE_integer("cpus_per_task", None, "CPUs of each process; the cluster's default.", flag_values=FLAGS)
flags.DEFINE_string("time", None, "Limit of one turn, HH:MM:SS; the partition's.", flag_values=FLAGS)
flags.DEFINE_string("partition", None, "Partition; the cluster's default.", flag_values=FLAGS)
flags.DEFINE_string("python", sys.executable, "Python of the environment, on the nodes.", flag_values=FLAGS)
flags.DEFINE_string("container", None, "Image that Apptainer runs the processes in.", flag_values=FLAGS)
flags.DEFINE_multi_string("sbatch", [], "One more option of sbatch; may be repeated.", flag_values=FLAGS)
flags.DEFINE_bool("dry_run", False, "Print the script and submit nothing.", flag_values=FLAGS)


def launch(argv: Sequence[str]) -> int:
    """Runs the command line above; prints the job's number."""
    rest = command.parse(FLAGS, argv, __doc__)
    parsed = main.parse(["nin_jax", *rest])
    if FLAGS.gpus_per_node and FLAGS.tasks_per_node != FLAGS.gpus_per_node:
        raise UserError(
            f"--tasks_per_node={FLAGS.tasks_per_node}: one process a GPU, as in --gpus_per_node={FLAGS.gpus_per_node}"
        )
    text = script(FLAGS, parsed.workdir.absolute(), rest)
    if FLAGS.dry_run:
        print(text, end="")
        print(f"# sbatch --parsable {shlex.quote(str(parsed.workdir / 'slurm.sh'))}")
        return 0
    file = parsed.workdir / "slurm.sh"
    (parsed.workdir / "logs").mkdir(parents=True, exist_ok=True)
    write_whole(file, text)
    try:
        line = ["sbatch", "--parsable", str(file)]
        done = subprocess.run(line, capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise UserError(f"sbatch is not on this machine; {file} is written, submit it where Slurm is") from error
    except subprocess.CalledProcessError as error:
        raise UserError(f"sbatch refuses {file}: {one_line(RuntimeError(error.stderr))}") from error
    number = done.stdout.strip().split(";")[0]
    say(f"job {number}; its output is {parsed.workdir / 'logs' / f'slurm-{number}.out'}")
    print(number)
    return 0


def script(values: flags.FlagValues, workdir: Path, rest: Sequence[str]) -> str:
    """The batch script of a run."""
    options = {
        "job-name": workdir.name,
        "nodes": values.nodes,
        "ntasks-per-node": values.tasks_per_node,
        "gpus-per-node": values.gpus_per_node or None,
        "cpus-per-task": values.cpus_per_task,
        "time": values.time,
        "partition": values.partition,
        "chdir": os.getcwd(),
        "output": workdir / "logs" / "slurm-%j.out",
        "open-mode": "append",  # a turn's output comes after that of the turns before
        "signal": "TERM@120",  # to the processes, so long before the time is over
    }
    lines = [f"#SBATCH --{name}={_directive(value)}" for name, value in options.items() if value is not None]
    lines += ["#SBATCH --requeue", *(f"#SBATCH {option}" for option in values.sbatch)]
    python = values.python
    if values.container:
        python = shlex.join(
            ["apptainer", "exec", *(["--nv"] if values.gpus_per_node else []), values.container, "python"]
        )
    else:
        python = shlex.quote(python)
    cpus = (
        f"--cpus-per-task={values.cpus_per_task} " if values.cpus_per_task else ""
    )  # srun does not take it from sbatch
    # --wait and not --kill-on-bad-exit: a process that is through must not cost another one its checkpoint.
    return f"""#!/usr/bin/env bash
{chr(10).join(lines)}
set -u
trap 'true' TERM  # this shell outlives the processes, which save
srun --wait=60 {cpus}{python} -m nin_jax.main {shlex.join(rest)}
code=$?
if [ "$code" -eq 75 ]; then
  # Fails where Slurm itself has put the job back already.
  scontrol requeue "$SLURM_JOB_ID" || true
fi
exit "$code"
"""


def _directive(value: object) -> str:
    """A value in an #SBATCH line, which knows quotes of its own kind."""
    text = str(value)
    return f'"{text}"' if re.search(r"\s", text) else text


if __name__ == "__main__":
    command.run(launch)
