"""A run as a Slurm job.

python -m launch.slurm --nodes=2 --tasks_per_node=8 --gpus_per_node=8 --time=24:00:00 [--partition=NAME]
                       [--container=IMAGE | --python=PATH] [--sbatch=--account=NAME ...] [--dry_run]
                       -- --config=experiments/NAME.py --workdir=SHARED_DIR ...

Writes WORKDIR/slurm.sh and submits it. The tasks find each other through srun's environment; JAX gives each task one GPU
of its node. Two minutes before the time limit, and when the job is preempted or requeued, all tasks save a checkpoint and
exit with 75; then the job requeues itself and resumes.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from launch import command
from nin_jax.console import say
from nin_jax.errors import UserError
from nin_jax.storage import write_whole

FLAGS = flags.FlagValues()
flags.DEFINE_integer("nodes", 1, "Nodes.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("tasks_per_node", 1, "Processes on each: one a GPU.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("gpus_per_node", 0, "GPUs of each node; 0: CPUs only.", lower_bound=0, flag_values=FLAGS)
flags.DEFINE_integer("cpus_per_task", None, "CPUs of each process; the cluster's default.", flag_values=FLAGS)
flags.DEFINE_string("time", None, "Time limit of one turn, HH:MM:SS; the partition's.", flag_values=FLAGS)
flags.DEFINE_string("partition", None, "Partition; the cluster's default.", flag_values=FLAGS)
flags.DEFINE_string("python", sys.executable, "Python of the environment, on the nodes.", flag_values=FLAGS)
flags.DEFINE_string("container", None, "Image that Apptainer runs the processes in.", flag_values=FLAGS)
flags.DEFINE_multi_string("sbatch", [], "One more option of sbatch; may be repeated.", flag_values=FLAGS)
flags.DEFINE_bool("dry_run", False, "Print the script and submit nothing.", flag_values=FLAGS)


def launch(argv: Sequence[str]) -> int:
    """Runs the command line above; prints the job's number."""
    rest, workdir = command.parse_run(FLAGS, argv, __doc__)
    workdir = workdir.absolute()
    file = workdir / "slurm.sh"
    if FLAGS.gpus_per_node and FLAGS.tasks_per_node != FLAGS.gpus_per_node:
        raise UserError(
            f"--tasks_per_node={FLAGS.tasks_per_node}: one process a GPU, as in --gpus_per_node={FLAGS.gpus_per_node}"
        )
    text = script(FLAGS, workdir, rest)
    if FLAGS.dry_run:
        print(text, end="")
        print(f"# sbatch --parsable {shlex.quote(str(file))}")
        return 0
    (workdir / "logs").mkdir(parents=True, exist_ok=True)
    write_whole(file, text)
    line, otherwise = ["sbatch", "--parsable", str(file)], f"{file} is written, submit it where Slurm is"
    done = command.tool(line, otherwise, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"sbatch refuses {file}: {' '.join(done.stderr.split())}")
    number = done.stdout.strip().split(";")[0]
    say(f"job {number}; its output is {workdir / 'logs' / f'slurm-{number}.out'}")
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
        "open-mode": "append",  # keeps the output of earlier turns
        "signal": "TERM@120",  # to the processes, this many seconds before the time limit
    }
    lines = [f"#SBATCH --{name}={_directive(value)}" for name, value in options.items() if value is not None]
    lines += ["#SBATCH --requeue", *(f"#SBATCH {option}" for option in values.sbatch)]
    nvidia = ["--nv"] if values.gpus_per_node else []
    container = ["apptainer", "exec", *nvidia, values.container, "python"]
    python = shlex.join(container if values.container else [values.python])
    # srun does not inherit it from sbatch
    cpus = f"--cpus-per-task={values.cpus_per_task} " if values.cpus_per_task else ""
    # --wait, not --kill-on-bad-exit: one process exiting must not kill another that is still saving.
    return f"""#!/usr/bin/env bash
{chr(10).join(lines)}
set -u
trap 'true' TERM  # this shell outlives the processes while they save
srun --wait=60 {cpus}{python} -m nin_jax.main {shlex.join(rest)}
code=$?
if [ "$code" -eq 75 ]; then
  # Fails where Slurm has requeued the job already.
  scontrol requeue "$SLURM_JOB_ID" || true
fi
exit "$code"
"""


def _directive(value: object) -> str:
    """A value in an #SBATCH line, which has its own quoting rules."""
    text = str(value)
    return f'"{text}"' if re.search(r"\s", text) else text


if __name__ == "__main__":
    command.run(launch)
