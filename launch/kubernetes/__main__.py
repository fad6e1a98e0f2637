"""A run as a JobSet on Kubernetes.

python -m launch.kubernetes [--values=FILE] [--name=NAME] [--dry_run] -- --config=experiments/NAME.py --workdir=/runs/NAME ...

Fills in jobset.yaml and passes it to `kubectl apply`; the cluster needs the JobSet controller. An evicted pod saves a
checkpoint and exits with 75, and the set restarts; exit codes 2, 70 and 74 end it.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from absl import flags

from launch import command
from nin_jax.errors import UserError, nearest, one_line

HERE = Path(__file__).parent

FLAGS = flags.FlagValues()
flags.DEFINE_string("values", str(HERE / "values.yaml"), "What the manifest is filled in with.", flag_values=FLAGS)
flags.DEFINE_string("name", None, "Name of the JobSet, instead of that in the values.", flag_values=FLAGS)
flags.DEFINE_bool("dry_run", False, "Print the manifest and start nothing.", flag_values=FLAGS)


def launch(argv: Sequence[str]) -> int:
    """Runs the command line above."""
    rest, workdir = command.parse_run(FLAGS, argv, __doc__)
    if not workdir.is_absolute():
        raise UserError(f"--workdir={workdir}: must be a path in the pods, below /runs")
    values = read(Path(FLAGS.values))
    if FLAGS.name:
        values["name"] = FLAGS.name
    text = manifest(values, rest)
    if FLAGS.dry_run:
        print(text, end="")
        return 0
    line = ["kubectl", "apply", "-f", "-"]
    return command.tool(line, "--dry_run prints the manifest", input=text, text=True).returncode


def read(file: Path) -> dict[str, Any]:
    """The values in a file, those of the project's values.yaml where it has none. Raises `UserError`."""
    known = yaml.safe_load((HERE / "values.yaml").read_text())
    try:
        values = yaml.safe_load(file.read_text())
        wrong = next((key for key in values if key not in known), None)
    except (OSError, yaml.YAMLError, TypeError) as error:
        raise UserError(f"--values={file} cannot be read: {one_line(error)}") from error
    if wrong is not None:
        raise UserError(f"--values={file}: unknown value {wrong!r}: {nearest(str(wrong), known)}")
    return {**known, **values}


def manifest(values: Mapping[str, Any], rest: Sequence[str]) -> str:
    """The manifest of a run. Raises `UserError` for values that Kubernetes would reject."""
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", str(values["name"])):
        raise UserError(f"name {values['name']!r}: small letters, digits and -, 40 at most")
    for key in ("processes", "restarts"):
        if type(values[key]) is not int or values[key] < 1:
            raise UserError(f"{key}: {values[key]!r}: must be a whole number, 1 or more")
    amounts = {name: str(amount) for name, amount in values["resources"].items()}
    own = {"resources": amounts, "command": ["python", "-m", "nin_jax.main", *rest]}
    return string.Template((HERE / "jobset.yaml").read_text()).substitute(
        {key: json.dumps(v) if isinstance(v, (dict, list)) else v for key, v in {**values, **own}.items()}
    )


if __name__ == "__main__":
    command.run(launch)
