"""The weights of another run as a start: all that fit are taken, what does not fit is named (`init_from`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from nin_jax import config as config_lib
from nin_jax.console import say
from nin_jax.data.splits import Info
from nin_jax.devices.mesh import host
from nin_jax.errors import UserError, one_line
from nin_jax.training import evaluate
from nin_jax.training.build import Run, make_model
from nin_jax.training.state import init_variables
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
    info = evaluate.trained_on(workdir)
    return Run(config_lib.check(config), info, info)


def variables_of(workdir: Path) -> tuple[Run, Mapping[str, Any]]:
    """A run, and the Flax variables that its newest good checkpoint is evaluated with. Raises `UserError`."""
    run = run_of(workdir)
    return run, evaluate.restore(run, run.recipe(1), workdir)[1].variables


def by_class(old: Mapping[str, Any], trained: Info, run: Run) -> dict[str, Any]:
    """Another network's variables, with its classes in the order of `run`; without those of the classes where they are others.

    Variables of the classes are those whose shape changes with the number of classes: an axis holds a place for each class,
    or such blocks one after the other, as where class maps are flattened. Names decide; where one of the two data sets has
    none, nothing is changed. Raises `UserError` where an argument of the network binds the number of classes.
    """
    mine, theirs = run.info.class_names, trained.class_names
    if not mine or not theirs or mine == theirs:
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
        say(f"the classes of that run are others ({', '.join(theirs[:20])}): the layer of the classes starts anew")
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


class Predictor:
    """The newest good checkpoint of a run directory, which may be a stranger's: nothing in it is executed.

    Args:
      workdir: the run directory.
      trust: whether modules outside the zoo that its config.json names by dotted path may be imported. Raises `UserError`
        for such a name without it.

    Attributes:
      config: the run's config.
      info: facts of the data set that it was trained on.
      class_names: by index of the logits; numbers where the data set has no names.
      params: its parameters; their average where the recipe takes one.
      step: the checkpoint's finished updates.
    """

    def __init__(self, workdir: str | Path, *, trust: bool = False):
        path = Path(workdir).expanduser()
        with jax.enable_x64(False):  # states are of 32 bits
            run = run_of(path, trust=trust)
            recipe = run.recipe(1)
            self.step, state = evaluate.restore(run, recipe, path)
            self._variables, self._stats = state.variables, run.fitted(path, write=False)
        self.config, self.info = run.config, run.info
        self.class_names = self.info.class_names or tuple(map(str, range(self.info.classes)))
        self.params = self._variables["params"]
        self._predict = jax.jit(lambda variables, stats, image: predict(recipe, variables, stats, image))
        self._sizes = {self.info.image_shape[:2]}
        shape = ", ".join(map(str, self.info.image_shape))
        self._wanted = f"wanted are whole numbers from 0 to 255 (uint8), of shape [B, {shape}]"

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Logits float32 `[B, K]` and every named map of images, preprocessed as in training.

        Raises `UserError` for images that the network was not trained for.

        Args:
          images: uint8 `[B, H, W, C]`, 0 to 255, or whole numbers of another type in this range. H and W are those of
            training; others are taken where neither the preprocessing nor the network depends on them.
        """
        with jax.enable_x64(False):
            try:
                images = np.asarray(images)
            except ValueError as error:  # NumPy's, of pictures that do not make one array
                raise UserError(f"images of several shapes: {self._wanted}") from error
            images = self._checked(images)
            return host(self._predict(self._variables, self._stats, images))

    def _checked(self, images: np.ndarray) -> np.ndarray:
        (height, width, channels), wanted = self.info.image_shape, self._wanted
        given = f"images of {images.dtype} {list(images.shape)}"
        if not np.issubdtype(images.dtype, np.integer):
            raise UserError(f"{given}: {wanted}")
        if images.ndim != 4 or images.shape[-1] != channels:
            raise UserError(f"{given}: {wanted}; the channels come last, and one image is a batch of one")
        if not images.size:
            raise UserError(f"{given}: there is no image; {wanted}")
        if images.min() < 0 or images.max() > 255:
            raise UserError(f"{given} from {images.min()} to {images.max()}: {wanted}")
        if images.shape[1:3] not in self._sizes:
            self._check_size(f"{given}: {wanted}", images.shape)
            say(f"{given}: the network was trained on {height} x {width}")
            self._sizes.add(images.shape[1:3])
        return images.astype(np.uint8)

    def _check_size(self, what: str, shape: tuple[int, ...]) -> None:
        """Raises `UserError` where an op or the network depends on the size of images."""
        for op in self.config.preprocess:
            if not getattr(op.entry, "ANY_SIZE", False):
                raise UserError(f"{what}; {op} is for images of this size")
        try:
            _, maps = jax.eval_shape(self._predict, self._variables, self._stats, jax.ShapeDtypeStruct(shape, np.uint8))
        except Exception as error:  # whatever a layer makes of the size
            raise UserError(f"{what}; the network does not take this size: {one_line(error)[:200]}") from error
        if empty := [name for name, m in maps.items() if not math.prod(m.shape)]:
            raise UserError(f"{what}; of this size nothing is left at {empty[0]}")
