"""Run directories as trained networks, and their weights as a start: all that fit are taken, the rest is named (`init_from`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from nin_jax import config as config_lib
from nin_jax.console import say
from nin_jax.data.splits import Info
from nin_jax.errors import UserError
from nin_jax.storage import expanded
from nin_jax.training import evaluate, pretrained, safetensors
from nin_jax.training.build import Run, make_model
from nin_jax.training.predict import Classifier
from nin_jax.training.state import init_variables


def run_of(workdir: Path, *, trust: bool = False) -> Run:
    """The run whose config.json lies in a directory, which may be a stranger's: nothing in it is executed.

    Raises `UserError`, also for modules outside the zoo that the config names, unless `trust` allows them.
    """
    path = workdir / "config.json"
    try:
        config = config_lib.read(path)
    except FileNotFoundError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not trust:
        safetensors.refuse_modules(config, str(path))
    info = evaluate.trained_on(workdir)
    return Run(config_lib.check(config), info, info)


def variables_of(workdir: Path) -> tuple[Run, Mapping[str, Any]]:
    """A run, and the Flax variables that its newest good checkpoint is evaluated with. Raises `UserError`."""
    run = run_of(workdir)
    return run, evaluate.restore(run, run.recipe(1), workdir)[1].variables


def trained_network(source: str) -> tuple[Info, Mapping[str, Any]]:
    """What a network was trained on, and the Flax variables that it is evaluated with. Raises `UserError`.

    Args:
      source: a name as `nin_jax.load` takes it, such as "nin.cifar10", or a run directory, of its newest good checkpoint.
    """
    if found := pretrained.find(source):
        network = safetensors.read(*found)
        return network.info, network.variables
    workdir = expanded(source)
    if not workdir.is_dir():
        raise pretrained.unknown(source)
    run, variables = variables_of(workdir)
    return run.info, variables


def by_class(old: Mapping[str, Any], trained: Info, run: Run) -> dict[str, Any]:
    """Another network's variables, with its classes in the order of `run`; without those of the classes where they are others.

    Variables of the classes are those whose shape changes with the number of classes: an axis holds a place for each class,
    or such blocks one after the other, as where class maps are flattened. Names decide; where neither data set has
    any, nothing is changed. Raises `UserError` where an argument of the network binds the number of classes.
    """
    mine, theirs = run.info.names, trained.names
    if mine == theirs or not (run.info.class_names or trained.class_names):
        return dict(old)
    more = run.info._replace(classes=run.info.classes + 1)
    try:
        model = make_model(run.config, more)
    except UserError as error:
        raise UserError(
            f"init_from: the classes of that run ({', '.join(theirs[:20])}) are others, or in another order, and which parameters "
            f"are theirs is seen with a class more: {error}; leave the argument out, if its default makes the same network"
        ) from error
    larger: Any = flatten_dict(jax.eval_shape(lambda: init_variables(model, 0, more.image_shape)))
    shapes: Any = flatten_dict(run.variables)
    flat: Any = flatten_dict(old)
    order = [theirs.index(name) for name in mine] if set(mine) == set(theirs) else None
    kept: dict[Any, Any] = {}
    for path, value in flat.items():
        if path not in shapes or value.shape != shapes[path].shape or value.shape == larger[path].shape:
            kept[path] = value
            continue
        axes = [
            (size, with_one_more - size) for size, with_one_more in zip(value.shape, larger[path].shape, strict=True)
        ]
        if order and all(blocks * len(order) in (0, size) for size, blocks in axes):
            places = (np.arange(n).reshape(b, -1)[:, order].ravel() if b else np.arange(n) for n, b in axes)
            kept[path] = np.asarray(value)[np.ix_(*places)]
    if order is None:
        others = ", ".join(theirs[:20])
        say(f"that run has other classes ({others}): the layer of the classes starts from random weights")
    return {**{key: {} for key in old}, **unflatten_dict(kept)}


def merge(new: Mapping[str, Any], old: Mapping[str, Any]) -> tuple[dict[str, Any], list[str], list[str]]:
    """Variables of a network with those of another one in place of its own, wherever path and shape are the same.

    So of two networks that differ in their last layer, "the last layer's parameters are discarded" (slides of 2014).

    Args:
      new: trees of arrays by collection, "params" and "batch_stats".
      old: the same of the other network.

    Returns:
      the merged trees; the paths of `new` that keep their own values; the paths of `old` that are not used.
    """
    mine: Any = flatten_dict(new)
    theirs: Any = flatten_dict(old)
    taken = {path for path, value in mine.items() if path in theirs and theirs[path].shape == value.shape}
    merged: Any = unflatten_dict({path: theirs[path] if path in taken else value for path, value in mine.items()})

    def named(paths: Any) -> list[str]:
        return ["/".join(path[1:]) for path in paths if path not in taken]

    return {**new, **merged}, named(mine), named(theirs)


def load_run(workdir: str | Path, *, trust: bool = False) -> Classifier:
    """The newest good checkpoint of a run directory, which may be a stranger's: nothing in it is executed.

    Args:
      workdir: the run directory.
      trust: whether modules outside the zoo that its config.json names may be imported. Raises `UserError`
        for such a name without it.
    """
    path = expanded(workdir)
    with jax.enable_x64(False):  # states are of 32 bits
        run = run_of(path, trust=trust)
        step, state = evaluate.restore(run, run.recipe(1), path)
        stats = run.fitted(path, write=False)
    model = run.model.clone(axis_name=None) if hasattr(run.model, "axis_name") else run.model
    return Classifier(run.config, run.info, model, state.variables, stats, step=step)
