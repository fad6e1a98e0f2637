"""A run on all workers of a TPU VM pod of Google Cloud.

python -m launch.tpu --name=nin --zone=us-central1-a --accelerator_type=v5litepod-16 --version=v2-alpha-tpuv5-lite
                     [--project=NAME] [--spot] [--keep] [--setup=COMMAND] [--dry_run]
                     -- --config=experiments/NAME.py --workdir=SHARED_DIR ...

Creates the pod, copies this checkout to every worker, installs it there, runs the command on all workers at once, and
deletes the pod, also after a failure (--keep leaves it). The processes find each other by themselves. The workdir must be
on a file system that all workers share, which --setup mounts. A preempted pod is created again, up to --restarts times,
and the run resumes.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from launch import command
from nin_jax.console import say
from nin_jax.errors import Preempted, UserError

ROOT = Path(__file__).parents[1]

FLAGS = flags.FlagValues()
flags.DEFINE_string("name", None, "Name of the pod.", flag_values=FLAGS)
flags.DEFINE_string("zone", None, "Zone of the pod.", flag_values=FLAGS)
flags.DEFINE_string("project", None, "Project; that of gcloud.", flag_values=FLAGS)
flags.DEFINE_string("accelerator_type", "v5litepod-16", "Kind and size of the pod.", flag_values=FLAGS)
flags.DEFINE_string("version", "v2-alpha-tpuv5-lite", "Image of its workers.", flag_values=FLAGS)
flags.DEFINE_bool("spot", False, "Cheaper, and may be preempted.", flag_values=FLAGS)
flags.DEFINE_bool("keep", False, "Do not delete the pod in the end.", flag_values=FLAGS)
flags.DEFINE_string("setup", None, "A command for each worker before the run, such as a mount.", flag_values=FLAGS)
flags.DEFINE_integer("restarts", 3, "Restarts after a preemption.", lower_bound=0, flag_values=FLAGS)
flags.DEFINE_bool("dry_run", False, "Print the commands and run none.", flag_values=FLAGS)


def launch(argv: Sequence[str]) -> int:
    """Runs the command line above; returns the exit code of the run."""
    rest, workdir = command.parse_run(FLAGS, argv, __doc__)
    for flag in ("name", "zone"):
        if not re.fullmatch(r"[a-z][a-z0-9-]*", FLAGS[flag].value or ""):
            raise UserError(f"--{flag}={FLAGS[flag].value or ''}: small letters, digits and -")
    if not workdir.is_absolute():
        raise UserError(f"--workdir={workdir}: must be an absolute path, on a file system that all workers share")
    create, prepare, run, delete = steps(rest)
    if FLAGS.dry_run:
        for line in (create, *prepare, run, *([] if FLAGS.keep else [delete])):
            print(shlex.join(line))
        return 0
    code = Preempted.exit_code
    try:
        for left in range(FLAGS.restarts, -1, -1):
            if all(_done(line) == 0 for line in (create, *prepare)):
                code = _done(run)
            if code in (0, *command.FINAL):
                break
            say(f"the pod was lost or interrupted ({code}); {left} restarts left")
            if left:
                _done(delete)
    finally:
        if not FLAGS.keep:
            _done(delete)
    return code


def steps(rest: Sequence[str]) -> tuple[list[str], list[list[str]], list[str], list[str]]:
    """The commands that create the pod, prepare its workers, run, and delete it."""
    where = [f"--zone={FLAGS.zone}", *([f"--project={FLAGS.project}"] if FLAGS.project else [])]
    tpu = ["gcloud", "compute", "tpus", "tpu-vm"]
    kind = [f"--accelerator-type={FLAGS.accelerator_type}", f"--version={FLAGS.version}"]
    create = [*tpu, "create", FLAGS.name, *where, *kind, *(["--spot"] if FLAGS.spot else [])]
    copy = [*tpu, "scp", "--recurse", str(ROOT), f"{FLAGS.name}:nin_jax", *where, "--worker=all"]

    def everywhere(line: str) -> list[str]:
        return [*tpu, "ssh", FLAGS.name, *where, "--worker=all", f"--command={line}"]

    install = (
        "sudo apt-get update -q && sudo apt-get install -qy python3.11-venv && python3.11 -m venv venv && "
        "venv/bin/pip install -q 'nin_jax/[tpu]'"
    )
    prepare = [copy, everywhere(install), *([everywhere(FLAGS.setup)] if FLAGS.setup else [])]
    run = everywhere(shlex.join(["venv/bin/python", "-m", "nin_jax.main", *rest]))
    return create, prepare, run, [*tpu, "delete", FLAGS.name, *where, "--quiet"]


def _done(line: Sequence[str]) -> int:
    say(shlex.join(line))
    return command.tool(line, "--dry_run prints the commands").returncode


if __name__ == "__main__":
    command.run(launch)
