"""A run directory from weights that were trained elsewhere. The modules beside this one read the formats."""

from __future__ import annotations

import functools
import hashlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from nin_jax import main as command_line
from nin_jax.config import Config
from nin_jax.console import exiting, say
from nin_jax.data import fitted
from nin_jax.data.splits import to_notes
from nin_jax.devices.mesh import compiled_in_32_bits, host, replicate
from nin_jax.errors import UserError, one_line
from nin_jax.runs.checkpoint import Checkpoints
from nin_jax.runs.directory import claim
from nin_jax.storage import expanded, write_json
from nin_jax.training.build import Run
from nin_jax.training.state import Recipe, init_variables, state_of
from nin_jax.training.step import predict

Options = Mapping[str, str]  # values of a command's own flags, by name without dashes
# "params" and "batch_stats" of a file in the shapes that `shapes` gives.
Reader = Callable[[Path, dict[str, Any], Options], dict[str, Any]]
# Fitted preprocessing that comes from elsewhere too; None: it is fitted on the training split.
Preparation = Callable[[Run, Options], fitted.Stats | None]

AGREEMENT = 1e-3  # of the largest logit; float32 on two machines differs by a hundredth of this


def shapes(model: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Shapes of a network's "params" and "batch_stats", in the order in which it creates them, and of its "maps"."""
    order: list[tuple[str, ...]] = []

    def init() -> dict[str, Any]:
        variables = init_variables(model, 0, image_shape)
        order.extend(flatten_dict(variables))
        return variables  # jax will sort it

    variables = jax.eval_shape(init)
    flat: Any = flatten_dict(variables)
    image = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
    _, maps = jax.eval_shape(functools.partial(model.apply, train=False), variables, image)
    return {"params": {}, "batch_stats": {}, **unflatten_dict({path: flat[path] for path in order}), "maps": maps}


@compiled_in_32_bits()
def make_run(
    read: Reader, file: Path, config: Config, workdir: Path, options: Options, prepare: Preparation = lambda *_: None
) -> None:
    """Makes `workdir` a run of `config` at step 0 with the weights of a file.

    Nothing is written before the file has been read, fits, and has passed the check. Raises `UserError`, `StorageFailed`.
    """
    run = Run(config)
    recipe = run.recipe(1)
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    variables = read(file, shapes(run.model, run.info.image_shape), options)
    content = file.read_bytes()
    source = {"file": file.name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    stats = prepare(run, options)
    if stats is None:
        stats = host(run.fitted(workdir, write=False, train=run.load(config.train_split)))
    if "check" in options:
        check(expanded(options["check"]), run, recipe, variables, stats)
    state = state_of(recipe, variables["params"], variables["batch_stats"])
    with claim(workdir, config):
        checkpoints = Checkpoints(workdir, config.keep)
        if checkpoints.steps():
            raise UserError(f"--workdir={workdir} holds a run already; choose another, or remove it")
        run.write_fitted(workdir, stats)
        write_json(workdir / "source.json", source)  # besides, since the checkpoint of step 0 is deleted in time
        checkpoints.save(0, replicate(state, run.mesh), {"source": source, "dataset": to_notes(run.info)})
        checkpoints.close()
    count = sum(np.size(p) for p in jax.tree.leaves(variables["params"]))
    say(f"{workdir}: step 0 with the {count:,} parameters of {file.name} (SHA-256 {source['sha256']})")


def check(file: Path, run: Run, recipe: Recipe, variables: Mapping[str, Any], stats: fitted.Stats) -> None:
    """Compares the network's logits with those in an .npz file. Raises `UserError` if they differ.

    The file holds "logits" `[B, K]` and one other array: uint8 images, which are preprocessed as the config says, or floats,
    which are given to the network as they are. They are `[B, H, W, C]` or, as in PyTorch, `[B, C, H, W]`.
    """
    shape, classes = run.info.image_shape, run.info.classes
    try:
        with np.load(file) as arrays:
            (image,) = (arrays[name] for name in arrays.files if name != "logits")
            theirs = arrays["logits"].reshape(-1, classes)
        if not len(theirs):
            raise ValueError("there are none")
        if image.shape[-3:] == (shape[-1], *shape[:-1]) != shape:
            image = np.moveaxis(image, -3, -1)
        image = image.reshape(len(theirs), *shape)
    except Exception as error:  # NumPy raises anything for a damaged file
        raise UserError(
            f"--check={file}: must hold 'logits' {('B', classes)} and images or inputs {('B', *shape)}: {one_line(error)}"
        ) from error
    if image.dtype == np.uint8:
        ours = jax.jit(lambda v, s, x: predict(recipe, v, s, x)[0])(variables, stats, image)
    else:
        ours = jax.jit(lambda v, x: recipe.apply(v, x, train=False)[0])(variables, image.astype(np.float32))
    difference = np.abs(np.asarray(ours, np.float64) - theirs).max() / max(float(np.abs(theirs).max()), 1e-9)
    if not difference <= AGREEMENT:
        raise UserError(
            f"--check={file}: the logits differ by {difference:.2g} of the largest: first {_listed(theirs[0])} in the file, "
            f"{_listed(ours[0])} here; nothing was written"
        )
    say(f"the logits of {len(image)} images agree to {difference:.1g} of the largest")


def _listed(logits: Any) -> str:
    return "[" + ", ".join(f"{value:.4g}" for value in logits[:10]) + (", ..." if len(logits) > 10 else "") + "]"


def command(
    read: Reader,
    what: str,
    doc: str | None,
    argv: Sequence[str] | None,
    own: Sequence[str] = (),
    prepare: Preparation = lambda *_: None,
) -> None:
    """Runs `FILE --config=... --workdir=...`; ends the process with the exit code of `nin_jax.main`'s contract.

    Args:
      read: reader of the format.
      what: such as "the .caffemodel file".
      doc: the help.
      argv: the command line; None: that of the process.
      own: names of the format's own flags, such as "mean".
      prepare: gives the preprocessing, if it does not have to be fitted.
    """
    program, *words = argv or sys.argv
    if any(word in ("-h", "--help") for word in words):
        print(doc)
        return
    with exiting():
        if not words or words[0].startswith("-"):
            raise UserError(f"the first argument must be {what}; --help shows the whole command")
        flags = [(word, re.fullmatch(rf"--?({'|'.join((*own, 'check'))})=(.*)", word)) for word in words[1:]]
        options = {flag[1]: flag[2] for _, flag in flags if flag}
        parsed = command_line.parse([program, *(word for word, flag in flags if not flag)])
        make_run(read, expanded(words[0]), parsed.config, parsed.workdir, options, prepare)
