"""The one evaluation path, used by the loop and by --mode=eval: every example of a split exactly once."""

from __future__ import annotations

import contextlib
import functools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from nin_jax import config as config_lib
from nin_jax.config import Config
from nin_jax.console import bar, say
from nin_jax.data import splits
from nin_jax.data.source import EvalSource
from nin_jax.data.splits import Info
from nin_jax.devices import processes
from nin_jax.devices.mesh import compiled_in_32_bits, host, replicate, replicated_like
from nin_jax.devices.replicas import compile_replicas
from nin_jax.errors import Diverged, UserError
from nin_jax.runs.checkpoint import Checkpoints
from nin_jax.training import fusion, pretrained, safetensors
from nin_jax.training.build import Run
from nin_jax.training.predict import Classifier
from nin_jax.training.state import Recipe, TrainState, init_state
from nin_jax.training.step import eval_steps


class Evaluator:
    """Evaluates networks on one split: one network, or several whose softmax outputs are averaged.

    Args:
      recipes: of each network.
      mesh, mapper: see `compile_replicas`.
      source: the split; see `Run.evaluation`.
      stats: the fitted preprocessing of each network, on the devices.

    Attributes:
      outputs: logits and labels of the last evaluation, of a task with metrics of a whole split.
    """

    def __init__(self, recipes: Sequence[Recipe], mesh: Mesh, mapper: str, source: EvalSource, stats: Sequence[Any]):
        self.recipes, self.mesh, self.mapper, self.source, self.stats = recipes, mesh, mapper, source, tuple(stats)
        self.first = replicate(np.int32(0), mesh)
        self.compiled: dict[Any, Callable[..., Any]] = {}
        self.outputs: tuple[np.ndarray, np.ndarray] | None = None

    def compile(self, variables: Sequence[Any], data: Any = None) -> Callable[..., Any]:
        """The function that evaluates a dispatch of such `data` (None: that of the first one), compiled once."""
        source = self.source
        data = source.like if data is None else data
        shapes = tuple(a.shape for a in jax.tree.leaves(data))
        if shapes not in self.compiled:
            steps = eval_steps(self.recipes, source.draw, source.batches_per_dispatch, mirrored=source.mirrored)
            arguments = tuple(variables), data, self.stats, self.first
            split = False, source.split, False, False
            self.compiled[shapes] = compile_replicas(steps, arguments, self.mesh, self.mapper, split=split)
        return self.compiled[shapes]

    def __call__(
        self, variables: Sequence[Any], stopped: Callable[[], bool] = lambda: False
    ) -> dict[str, float] | None:
        """The mean loss (natural logarithm), errors in per cent and number of examples; None if `stopped` says so.

        Sums are taken in float64 in the order of the batches, so the result does not depend on the dispatch length.

        Args:
          variables: of each network.
          stopped: asked before each dispatch.
        """
        source, variables, number, parts, rows = self.source, tuple(variables), self.first, [], []
        self.compile(variables)
        processes.meet()
        with bar("evaluating", source.batches) as update, contextlib.closing(iter(source)) as dispatches:
            for data in dispatches:
                if stopped():
                    return None
                sums, each, number = self.compile(variables, data)(variables, data, self.stats, number)
                parts.append(host(sums))
                rows.append(host(each))
                update(advance=source.batches_per_dispatch)
        sums = {key: float(np.sum(np.concatenate([p[key] for p in parts]), dtype=np.float64)) for key in parts[0]}
        examples = round(sums.pop("examples"))
        assert examples == source.examples or not source.exact, (examples, source.examples)
        if not examples:
            raise UserError("no example of the split can be used")
        means = {key: total / examples for key, total in sums.items()}
        task: Any = self.recipes[0].task
        if rows[0]:
            logits, labels, weight = (
                np.concatenate([a.reshape(-1, *a.shape[2:]) for a in part]) for part in zip(*rows, strict=True)
            )
            self.outputs = logits[weight > 0], labels[weight > 0]
            means |= task.of_split(*self.outputs)
        loss = means.pop("loss")
        return {"loss": loss, **{f"{key}_pct": 100 * mean for key, mean in means.items()}, "examples": examples}


@compiled_in_32_bits()
def evaluate_run(
    config: Config, workdir: Path, ensemble: Sequence[Path] = (), scores: Path | None = None
) -> dict[str, Any]:
    """--mode=eval: evaluates the newest checkpoint of a run directory under `config`, and changes nothing in it.

    Keys that differ from the run's own config are named on stderr; preprocessing other than the run's is fitted on the
    training split. The last line printed is one JSON object: "split", "examples", "error_pct", "loss", "step". The
    step of a folder of weights is null.

    Args:
      config: what is evaluated, on which data, and how.
      workdir: the run directory, or the folder of a trained network in the layout of `training.safetensors`.
      ensemble: such directories whose networks' softmax is averaged, instead of `workdir`. Model, preprocessing and task
        are each run's own; the rest is that of `config`.
      scores: the file that gets the probability of each class for each image, see `fusion`; for task "multilabel".
    """
    everyone = [_trained(directory) for directory in ensemble or (workdir,)]
    first = everyone[0]
    for one in everyone:
        if one.info and first.info and one.info.class_names != first.info.class_names:
            raise UserError(
                f"--ensemble: {one.directory} was trained on other classes than {first.directory}, or in another order"
            )
    run = Run(config, first.info)
    for line in run.info.found:
        say(line)
    members = [_member(config, one, own=bool(ensemble)) for one in everyone]
    recipes, stats, variables, numbers = zip(*members, strict=True)
    source = run.evaluation(run.load(config.eval_split))
    evaluator = Evaluator(recipes, run.mesh, config.mapper, source, stats)
    result = evaluator(variables)
    assert result is not None
    if scores and processes.is_first():
        if evaluator.outputs is None:
            raise UserError(f"--scores={scores}: task={config.task} has none; that of 'multilabel' has")
        fusion.write(scores, fusion.Scores.of(run.info.names, *evaluator.outputs))
    if not math.isfinite(result["loss"]):
        raise Diverged(f"the loss on split {config.eval_split!r} is not finite")
    line = {"split": config.eval_split, "views": config.eval.views, "examples": result.pop("examples"), **result}
    line["step"] = list(numbers) if ensemble else numbers[0]
    if processes.is_first():
        print(json.dumps(line), flush=True)
    return line


class _Trained(NamedTuple):
    """What is evaluated: a run directory, or the folder or name of a trained network.

    Attributes:
      config: its plain config.
      info: facts of the data set that it was trained on; None where no checkpoint notes them.
      network: None for a run directory.
    """

    directory: Path
    config: dict[str, Any]
    info: Info | None
    network: Classifier | None


def _trained(directory: Path) -> _Trained:
    """Raises `UserError` where there is nothing."""
    if found := pretrained.find_unless_run(str(directory)):
        network = safetensors.read(*found)
        return _Trained(directory, config_lib.to_dict(network.config), network.info, network)
    plain = processes.from_first(functools.partial(_config, directory))
    return _Trained(directory, plain, trained_on(directory), None)


def _member(config: Config, of: _Trained, *, own: bool) -> tuple[Recipe, Any, Any, int | None]:
    """A trained network under `config`, or with its `own` model, preprocessing and task instead of those of `config`.

    Returns:
      the recipe; the fitted preprocessing and the variables, on the devices; the step, None for a folder of weights.
    """
    trained = config_lib.from_dict(of.config)
    if own:
        if outside := config_lib.modules(trained):
            raise UserError(f"{of.directory / 'config.json'} names modules outside the zoo: {', '.join(outside)}")
        mixed = config_lib.from_dict(config_lib.to_dict(config))
        mixed.unlock()
        for key in ("model", "preprocess", "task", "train_split"):
            mixed[key] = trained[key]
        mixed.optimizer.average = trained.optimizer.average
        config = config_lib.check(mixed)
    every = config_lib.differences(of.config, config_lib.to_dict(config))
    differing = [line for line in every if line.split(":")[0] not in config_lib.NOT_THE_RUN]
    run = Run(config, of.info)
    recipe = run.recipe(1)
    try:
        if of.network:
            safetensors.match(of.network.variables, run.variables)
            number, variables = None, replicate(host(of.network.variables), run.mesh)
        else:
            number, state = restore(run, recipe, of.directory)
            variables = state.variables
    except (UserError, ValueError) as mistake:
        raise UserError(
            f"{mistake}; differs from the run: {'; '.join(differing)}" if differing else str(mistake)
        ) from None
    for line in differing:
        say(f"differs from the run{f' in {of.directory}' if own else ''}: {line}")
    if of.network and config.preprocess == of.network.config.preprocess:
        return recipe, replicate(host(of.network.stats), run.mesh), variables, number
    return recipe, run.fitted(of.directory, write=False), variables, number


def _config(workdir: Path) -> dict[str, Any]:
    """The config in the config.json of a run directory. Raises `UserError`."""
    try:
        return config_lib.to_dict(config_lib.read(workdir / "config.json"))
    except FileNotFoundError as error:
        raise UserError(f"--workdir={workdir} holds no run; train first, or name the directory of a run") from error


def trained_on(workdir: Path) -> Info | None:
    """Facts of the data set that a run directory's newest checkpoint was trained on; None if none notes them."""
    notes = Checkpoints(workdir, read_only=True).notes() or {}
    return splits.from_notes(notes["dataset"]) if "dataset" in notes else None


def restore(run: Run, recipe: Recipe, workdir: Path) -> tuple[int, TrainState]:
    """Step and state of the newest good checkpoint of a run directory, which is only read. Raises `UserError`."""
    if not processes.from_first(lambda: (workdir / "checkpoints").is_dir()):
        raise UserError(f"--workdir={workdir} holds no checkpoint; train first, or name the directory of a run")
    shapes = jax.eval_shape(lambda: init_state(recipe, 0, run.info.image_shape))
    found = Checkpoints(workdir, read_only=True).restore(replicated_like(shapes, run.mesh))
    if not found:
        raise UserError(f"--workdir={workdir} holds no checkpoint that can be used with this config")
    return found[0], found[1]
