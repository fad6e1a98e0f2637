"""From a checked config to the parts of a run: facts of the data set, model, recipe, data on the devices, preprocessing."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nin_jax.config import Config
from nin_jax.console import say
from nin_jax.data import fitted, memory, splits, views
from nin_jax.data.source import EvalSource, TrainSource
from nin_jax.data.splits import Info, Split
from nin_jax.devices import processes
from nin_jax.devices.mesh import AXIS, check_batch, check_precision, make_mesh, replicate
from nin_jax.errors import ExitError, UserError, one_line
from nin_jax.training import optim
from nin_jax.training.state import Recipe, init_variables

if TYPE_CHECKING:  # its imports take a second, and most data sets fit in memory
    from nin_jax.data.encoded import Pictures

T = TypeVar("T")
SAMPLE = 2048  # images of a streamed data set that its preprocessing is fitted on


class Run:
    """A checked config as objects. Making one reads only the facts of the data set, no data.

    Raises `UserError` if the parts do not fit each other or the machine.

    Args:
      config: the config.
      trained: facts of the data set that the network was trained on; the data's classes are matched to its classes by
        name.
      data: facts of the data set, if they are known already.

    Attributes:
      config: the config.
      info: facts of the data set, with the classes of the network.
      mesh: the devices.
      model: the network, computing in the config's precision.
      variables: shapes of its "params" and "batch_stats".
      left_out: number of bad examples left out of each split; None for a streamed one.
    """

    def __init__(self, config: Config, trained: Info | None = None, data: Info | None = None):
        self.config = config
        self.left_out: dict[str, int | None] = {}
        self.mesh = make_mesh()
        check_batch(config.batch_size, self.mesh, config.accumulate)
        check_precision(config.precision, list(self.mesh.devices.flat))
        self.data = data or splits.facts(config.dataset, config.data_dir)
        trained = trained or self.data
        self.labels = splits.match_classes(self.data, trained)
        found = self.data.found
        if self.labels is not None:
            what = f"dataset {self.data.name} ({self.data.source})"
            found += (f"classes of {what} are matched by name to the {trained.classes} of the run",)
        self.info = self.data._replace(classes=trained.classes, class_names=trained.class_names, found=found)
        self.model = make_model(config, self.info)
        check_ops(config, self.info)
        self.variables = check_network(config, self.info, self.model)
        check_objective(config, self.info)

    def recipe(self, updates_per_epoch: int, scale: float = 1.0) -> Recipe:
        """What updates and evaluations are made of; the learning rate is `scale` times the config's."""
        c = self.config
        return Recipe(
            self.model,
            c.task.entry,
            functools.partial(c.task.entry.objective, **c.task.arguments),
            c.preprocess,
            c.augment,
            c.batch_size,
            optim.optimizer(c, updates_per_epoch, scale),
            c.optimizer.average,
            c.accumulate,
            c.precision,
        )

    def load(self, split: str) -> Split | Pictures:
        """The images and labels of a split, checked; or, of a streamed data set, its encoded pictures.

        `left_out` then has the number of bad ones left out.
        """
        c = self.config
        policy: dict[str, Any] = {"bad_records": c.bad_records} if c.bad_records != "stop" else {}
        whole = c.dataset.entry.load(split, c.data_dir, **c.dataset.arguments, **policy)
        if self.info.streamed:
            if self.labels is not None:
                raise UserError(f"dataset {c.dataset}: streamed, so its classes must be the run's, in the same order")
            self.left_out[split] = None  # bad ones show when they are read
            return whole
        what = f"split {split!r} of {c.dataset}"
        (images, labels), self.left_out[split] = splits.usable(whole, self.data, what, c.bad_records)
        return images, (labels if self.labels is None else splits.renamed(labels, self.labels, self.info))

    def training(self, data: Split | Pictures) -> TrainSource:
        """The source of a run's training batches."""
        c = self.config
        if isinstance(data, tuple):
            return memory.Shuffled(self.on_devices(data), self.info.image_shape, c.batch_size, c.seed, self.mesh)
        from nin_jax.data import stream

        return stream.TrainStream(data, self.mesh, c.batch_size, c.seed, c.epochs, stream.workers_here(c.workers))

    def evaluation(self, data: Split | Pictures) -> EvalSource:
        """The source of an evaluation's batches."""
        c = self.config
        size = c.eval_batch_size or c.batch_size
        if isinstance(data, tuple):
            batch_size = memory.even_batches(len(data[1]), size, self.mesh.size)
            return memory.InOrder(
                self.on_devices(data), self.info.image_shape, batch_size, mirrored=c.eval.views in views.MIRRORED
            )
        from nin_jax.data import stream

        return stream.EvalStream(data, self.mesh, size, c.eval.views, stream.workers_here(c.workers))

    def on_devices(self, split: Split) -> memory.Arrays:
        """A copy of the split on every device."""
        image: Any = memory.flat(np.asarray(split[0]))  # on its way to being the jax.Array of Arrays
        label: Any = split[1]
        return replicate(memory.Arrays(image, label), self.mesh)

    def fitted(self, workdir: Path, *, write: bool, train: Split | Pictures | None = None) -> Any:
        """The fitted preprocessing, on the devices: that of the run in `workdir`, or fitted now on the training split.

        With several processes, the first one reads or fits it.

        Args:
          workdir: its preprocess.npz is used if it was fitted for the same data set and ops.
          write: whether to write that file if it is not there.
          train: the training split, if it is loaded already.
        """
        path, ops = workdir / "preprocess.npz", self.config.preprocess

        def read_or_fit() -> fitted.Stats:
            stats = fitted.read_stats(path, self._fitted_for, len(ops)) if path.exists() else None
            if stats is None:
                if not all(op.entry.PER_IMAGE for op in ops):
                    some = f"at most {SAMPLE} images of " if self.info.streamed else ""
                    say(f"fitting {', '.join(map(str, ops))} on {some}{self.config.train_split}")
                data = train or self.load(self.config.train_split)
                images = data[0] if isinstance(data, tuple) else data.sample(SAMPLE)
                stats = fitted.fit(ops, images)
                if write:
                    self.write_fitted(workdir, stats)
            return stats

        return replicate(processes.arrays_from_first(read_or_fit), self.mesh)

    @property
    def _fitted_for(self) -> str:
        return json.dumps([str(self.config.dataset), [str(op) for op in self.config.preprocess]])

    def write_fitted(self, workdir: Path, stats: fitted.Stats) -> None:
        """Writes the fitted preprocessing of the run in `workdir`, these numbers of each op."""
        fitted.write_stats(workdir / "preprocess.npz", self._fitted_for, stats)


def make_model(config: Config, info: Info) -> nn.Module:
    """The config's model for a data set. Raises `UserError` if its arguments do not fit each other."""
    call, dtype = config.model, jnp.bfloat16 if config.precision == "bfloat16" else jnp.float32
    model = _trial(f"model {call.name}", lambda: call.entry.Model(info.classes, dtype=dtype, **call.arguments))
    return model.clone(axis_name=AXIS) if hasattr(model, "axis_name") else model


def check_ops(config: Config, info: Info) -> None:
    """Tries, without computing, the ops that need no fitting."""
    image = jax.ShapeDtypeStruct((1, *info.image_shape), jnp.float32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    per_image = [(op, {}) for op in config.preprocess if op.entry.PER_IMAGE]
    for op, first in (*per_image, *((op, keys) for op in config.augment)):
        apply: Any = functools.partial(op.entry.apply, **op.arguments)
        _trial(repr(str(op)), functools.partial(jax.eval_shape, apply, first, image))


def check_network(config: Config, info: Info, model: nn.Module) -> dict[str, Any]:
    """Tries, without computing, the network on the data set's images, and on larger ones if `eval.views` has them.

    Returns:
      the shapes of its variables.
    """
    protocol, name, (height, width, channels) = config.eval.views, config.model.name, info.image_shape
    if protocol not in views.WHOLE and not info.streamed:
        raise UserError(
            f"eval.views={protocol!r}: images of {info.name} have the network's own size and are seen whole; use 'center' or 'mirror'"
        )
    init = functools.partial(init_variables, model, 0, info.image_shape)
    variables: dict[str, Any] = _trial(f"model {name}", functools.partial(jax.eval_shape, init))
    image = jax.ShapeDtypeStruct((1, *info.image_shape), jnp.float32)
    forward = functools.partial(model.apply, train=False)
    outputs: Any = _trial(f"model {name}", functools.partial(jax.eval_shape, forward, variables, image))
    logits, maps = outputs if isinstance(outputs, tuple) and len(outputs) == 2 else (outputs, None)
    if getattr(logits, "shape", None) != (1, info.classes) or not isinstance(maps, Mapping):
        shapes = str(jax.tree.map(lambda out: list(out.shape), outputs))[:200]
        raise UserError(
            f"model {name} returns {shapes} for one image; expected (logits, maps): logits [1, {info.classes}], a number for each "
            "class of the data set, and a dict of feature maps"
        )
    if variables["batch_stats"] and not hasattr(model, "axis_name"):
        raise UserError(
            f"model {name} normalises over the batch, but has no attribute axis_name, so each device would use the "
            "statistics of its own share of the batch; see nin_jax/models/__init__.py"
        )
    if variables["batch_stats"] and config.accumulate > 1:
        raise UserError(
            f"accumulate={config.accumulate}: batch normalisation needs the whole batch at once; use accumulate=1"
        )
    if protocol == "dense":
        larger = jax.ShapeDtypeStruct((1, 2 * height, 3 * width, channels), jnp.float32)
        apply = functools.partial(model.apply, train=False)
        what = f"eval.views='dense' needs a network that ends in global average pooling; model {name}"
        _trial(what, functools.partial(jax.eval_shape, apply, variables, larger))
    return variables


def check_objective(config: Config, info: Info) -> None:
    """Tries, without computing, the loss."""
    if info.multilabel != getattr(config.task.entry, "MULTILABEL", False):
        wanted = (
            "several labels an image: use task='multilabel'"
            if info.multilabel
            else "one label an image: use task='classify'"
        )
        raise UserError(f"task={str(config.task)!r}: dataset {info.name} has {wanted}")
    logits = jax.ShapeDtypeStruct((1, info.classes), jnp.float32)
    labels = jax.ShapeDtypeStruct((1, info.classes) if info.multilabel else (1,), jnp.int32)
    objective = functools.partial(config.task.entry.objective, **config.task.arguments)
    _trial(repr(str(config.task)), functools.partial(jax.eval_shape, objective, logits, labels))


def _trial(what: str, f: Callable[[], T]) -> T:
    try:
        return f()
    except ExitError:  # a signal may arrive here too
        raise
    except Exception as error:  # whatever flax or jax raises for wrong widths or numbers
        raise UserError(f"{what}: {type(error).__name__}: {one_line(error)[:300]}") from error
