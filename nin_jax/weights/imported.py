"""A run directory from weights that were trained elsewhere; the readers of the formats are the modules beside this one."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from nin_jax import main as command_line
from nin_jax.config import Config
from nin_jax.console import fail, say
from nin_jax.data import fitted
from nin_jax.devices.mesh import replicate
from nin_jax.errors import ExitError, UserError
from nin_jax.runs.checkpoint import Checkpoints
from nin_jax.runs.directory import claim
from nin_jax.storage import write_json
from nin_jax.training import step
from nin_jax.training.build import Run

# Of a file and what `shapes` gives: the variables, and the "file", "bytes" and "sha256" they come from.
Reader = Callable[[Path, dict[str, Any]], tuple[dict[str, Any], dict[str, Any]]]
Preparation = Callable[[Run], fitted.Stats]  # the fitted preprocessing of a run, from elsewhere too


def shapes(run: Run) -> dict[str, Any]:
    """Shapes of a network's "params" and "batch_stats", in the order in which it makes them."""
    order: list[tuple[str, ...]] = []

    def init() -> dict[str, Any]:
        variables = step.init_variables(run.model, 0, run.info.image_shape)
        order.extend(flatten_dict(variables))
        return variables  # jax will sort it

    flat: Any = flatten_dict(jax.eval_shape(init))
    return {"params": {}, "batch_stats": {}, **unflatten_dict({path: flat[path] for path in order})}


def make_run(read: Reader, file: Path, config: Config, workdir: Path, prepare: Preparation | None = None) -> None:
    """Makes `workdir` a run of `config` at step 0 with the weights of a file.

    Nothing is written before the file has been read and has fitted. Without `prepare` the preprocessing is fitted on the
    training split. Raises `UserError`, `StorageFailed`.
    """
    run = Run(config)
    recipe = run.recipe(1)
    variables, source = read(file, shapes(run))
    stats = prepare(run) if prepare else None
    train = None if prepare else run.load(config.train_split)
    state = step.state_of(recipe, variables["params"], variables["batch_stats"])
    with claim(workdir, config):
        checkpoints = Checkpoints(workdir, config.keep)
        if checkpoints.manager.all_steps():
            raise UserError(f"--workdir={workdir} holds a run already; choose another, or remove it")
        if stats is None:
            run.fitted(workdir, write=True, train=train)
        else:
            run.write_fitted(workdir, stats)
        write_json(workdir / "source.json", source)  # of its own, because the checkpoint of step 0 goes in time
        checkpoints.save(0, replicate(state, run.mesh), {"source": source})
        checkpoints.close()
    count = sum(np.size(p) for p in jax.tree.leaves(variables["params"]))
    say(f"{workdir}: step 0 with the {count:,} parameters of {file.name} (SHA-256 {source['sha256']})")


def command(
    read: Reader,
    what: str,
    doc: str | None,
    argv: Sequence[str] | None,
    preparations: Mapping[str, Callable[[Path], Preparation]] = types.MappingProxyType({}),
) -> None:
    """Runs `FILE --config=... --workdir=...`; ends the process with the exit code of `nin_jax.main`'s contract.

    Args:
      read: reader of the format.
      what: such as "the .caffemodel file".
      doc: the help.
      argv: the command line; None: that of the process.
      preparations: by flag, such as "--mean", what makes a `Preparation` of the file that is its value.
    """
    program, *words = argv or sys.argv
    try:
        if any(word in ("-h", "--help") for word in words):
            print(doc)
            return
        if not words or words[0].startswith("-"):
            raise UserError(f"the first argument must be {what}; --help shows the whole command")
        flags = [word.partition("=") for word in words[1:]]
        rest = ["".join(flag) for flag in flags if flag[0] not in preparations]
        prepare = [preparations[name](Path(value).expanduser()) for name, _, value in flags if name in preparations]
        parsed = command_line.parse([program, *rest])
        make_run(read, Path(words[0]).expanduser(), parsed.config, parsed.workdir, *prepare[-1:])
    except ExitError as ending:
        fail(str(ending))
        raise SystemExit(ending.exit_code) from None
