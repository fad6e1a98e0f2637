"""The weights of another run as a start: all that fit are taken, what does not fit is named (`init_from`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from nin_jax import config as config_lib
from nin_jax.devices.mesh import host
from nin_jax.errors import UserError
from nin_jax.training import evaluate
from nin_jax.training.build import Run
from nin_jax.training.step import predict


def run_of(workdir: Path, *, trust: bool = False) -> Run:
    """The run whose config.json lies in a directory, which may be a stranger's: nothing in it is executed.

    Raises `UserError`, also for modules outside the zoo that the config names by dotted path, unless `trust` allows them.
    """
    path = workdir / "config.json"
    try:
        config = config_lib.read(path)
    except FileNotFoundError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if (outside := config_lib.modules(config)) and not trust:
        raise UserError(
            f"{path} names modules outside the zoo ({', '.join(outside)}), which loading would execute; "
            "load_run(DIR, trust=True) if you know them"
        )
    return Run(config_lib.check(config))


def variables_of(workdir: Path) -> Mapping[str, Any]:
    """The Flax variables that the newest good checkpoint of a run is evaluated with. Raises `UserError`."""
    run = run_of(workdir)
    return evaluate.restore(run, run.recipe(1), workdir)[1].variables


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


class Predictor:
    """The newest good checkpoint of a run directory, which may be a stranger's: nothing in it is executed.

    Args:
      workdir: the run directory.
      trust: whether modules outside the zoo that its config.json names by dotted path may be imported. Raises `UserError`
        for such a name without it.

    Attributes:
      config: the run's config.
      params: its parameters; their average where the recipe takes one.
      step: the checkpoint's finished updates.
    """

    def __init__(self, workdir: str | Path, *, trust: bool = False):
        path = Path(workdir).expanduser()
        run = run_of(path, trust=trust)
        self.config = run.config
        recipe = run.recipe(1)
        self.step, state = evaluate.restore(run, recipe, path)
        self._variables, self._stats = state.variables, run.fitted(path, write=False)
        self.params = self._variables["params"]
        self._predict = jax.jit(lambda variables, stats, image: predict(recipe, variables, stats, image))

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Logits float32 `[B, K]` and every named map of uint8 pictures `[B, H, W, C]`, preprocessed as in training."""
        return host(self._predict(self._variables, self._stats, np.asarray(images, np.uint8)))
