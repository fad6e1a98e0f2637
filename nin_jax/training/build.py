"""From config to the parts of a run: facts of the data set, model, recipe, data on the devices, fitted preprocessing."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nin_jax import registry
from nin_jax.config import Config
from nin_jax.console import say
from nin_jax.data import fitted, memory
from nin_jax.data.fitted import read_stats as _read_stats
from nin_jax.data.fitted import write_stats as _write_stats
from nin_jax.data.source import EvalSource, TrainSource
from nin_jax.data.splits import Info, Split, usable
from nin_jax.devices import processes
from nin_jax.devices.mesh import AXIS, check_batch, check_precision, make_mesh, replicate
from nin_jax.errors import ExitError, UserError, one_line
from nin_jax.training import optim
from nin_jax.training.state import Recipe, init_variables

if TYPE_CHECKING:  # what it imports takes a second, and most data sets fit in memory
    from nin_jax.data.encoded import Pictures


SAMPLE = 2048  # pictures of a streamed data set that its preprocessing is fitted on


class Run:
    """What a checked config says, as objects. Making one reads no data but the data set's facts.

    Raises `UserError` where the parts do not fit each other or the machine.

    Attributes:
      config: the config.
      info: facts of the data set.
      mesh: the devices.
      preprocess, augment: the parsed ops.
      left_out: how many bad examples of each split were left out when it was loaded; None of a streamed one.
    """

    def __init__(self, config: Config):
        self.config = config
        self.left_out: dict[str, int | None] = {}
        name, self.dataset_arguments = registry.parse_call(config.dataset)
        self.dataset: ModuleType = registry.find("datasets", name)
        registry.check_arguments(f"dataset {name}", _keyword_only(self.dataset.load), self.dataset_arguments)
        self.preprocess = fitted.parse(config.preprocess, random=False)
        self.augment = fitted.parse(config.augment, random=True)
        self.mesh = make_mesh()
        check_batch(config.batch_size, self.mesh, config.accumulate)
        check_precision(config.precision, list(self.mesh.devices.flat))
        self.info: Info = (
            self.dataset.info(config.data_dir, **self.dataset_arguments)
            if hasattr(self.dataset, "info")
            else self.dataset.INFO
        )
        self._check_ops()
        self._check_model()
        self._check_views()
        self._check_task()

    @cached_property
    def model(self) -> nn.Module:
        """The model, computing in the config's precision."""
        arguments = self.config.model.to_dict()
        module = registry.find("models", arguments.pop("name"))
        model = module.Model(self.info.classes, dtype=jnp.dtype(self.config.precision), **arguments)
        return model.clone(axis_name=AXIS) if hasattr(model, "axis_name") else model

    def recipe(self, updates_per_epoch: int, scale: float = 1.0) -> Recipe:
        """What the steps are made of; the learning rate is `scale` times the config's."""
        c = self.config
        name, arguments = registry.parse_call(c.task)
        task = registry.find("tasks", name)
        return Recipe(
            self.model,
            task,
            functools.partial(task.objective, **arguments),
            self.preprocess,
            self.augment,
            c.batch_size,
            optim.optimizer(c, updates_per_epoch, scale),
            c.optimizer.average,
            c.accumulate,
        )

    def load(self, split: str) -> Split | Pictures:
        """The images and labels of a split, checked; or, of a streamed data set, its encoded pictures.

        `left_out` has how many bad ones are not among them.
        """
        policy = self.config.bad_records
        takes_policy = "bad_records" in inspect.signature(self.dataset.load).parameters
        arguments = self.dataset_arguments | ({"bad_records": policy} if takes_policy else {})
        whole = self.dataset.load(split, self.config.data_dir, **arguments)
        if self.info.streamed:
            self.left_out[split] = None  # they show when their turn comes
            return whole
        good, self.left_out[split] = usable(whole, self.info, f"split {split!r} of {self.config.dataset}", policy)
        return good

    def training(self, data: Split | Pictures) -> TrainSource:
        """What a run's updates are made from."""
        c = self.config
        if isinstance(data, tuple):
            return memory.Shuffled(self.on_devices(data), c.batch_size, c.seed, self.mesh)
        from nin_jax.data import stream

        return stream.TrainStream(data, self.mesh, c.batch_size, c.seed, c.epochs, stream.workers_here(c.workers))

    def evaluation(self, data: Split | Pictures) -> EvalSource:
        """What an evaluation is made from."""
        c = self.config
        size = c.eval_batch_size or c.batch_size
        if isinstance(data, tuple):
            return memory.InOrder(self.on_devices(data), memory.even_batches(len(data[1]), size, self.mesh.size))
        from nin_jax.data import stream

        return stream.EvalStream(data, self.mesh, size, c.eval.views, stream.workers_here(c.workers))

    def on_devices(self, split: Split) -> memory.Arrays:
        """A copy of the split on every device."""
        image: Any = np.asarray(split[0])  # on their way to being the jax.Array that Arrays says
        label: Any = split[1]
        return replicate(memory.Arrays(image, label), self.mesh)

    def fitted(self, workdir: Path, *, write: bool, train: Split | Pictures | None = None) -> Any:
        """The fitted preprocessing, on the devices: that of the run in `workdir`, or fitted now on the training split.

        With several processes the first one reads or fits it.

        Args:
          workdir: its preprocess.npz is used when it was fitted for the same data set and ops.
          write: whether to write that file when it is not there.
          train: the training split, if it is loaded already.
        """
        path = workdir / "preprocess.npz"

        def read_or_fit() -> fitted.Stats:
            stats = _read_stats(path, self._fitted_for, len(self.preprocess)) if path.exists() else None
            if stats is None:
                if any(not module.PER_IMAGE for _, module, _ in self.preprocess):
                    some = f"at most {SAMPLE} pictures of " if self.info.streamed else ""
                    say(f"fitting {', '.join(self.config.preprocess)} on {some}{self.config.train_split}")
                data = train or self.load(self.config.train_split)
                images = data[0] if isinstance(data, tuple) else data.sample(SAMPLE)
                stats = fitted.fit(self.preprocess, images)
                if write:
                    self.write_fitted(workdir, stats)
            return stats

        return replicate(processes.arrays_from_first(read_or_fit), self.mesh)

    @property
    def _fitted_for(self) -> str:
        return json.dumps([self.config.dataset, list(self.config.preprocess)])

    def write_fitted(self, workdir: Path, stats: fitted.Stats) -> None:
        """Makes the fitted preprocessing of the run in `workdir` these numbers of each op."""
        _write_stats(workdir / "preprocess.npz", self._fitted_for, stats)

    def _check_ops(self) -> None:
        """Types of all arguments; and a trial, without computing, of the ops that need nothing fitted."""
        image = jax.ShapeDtypeStruct((1, *self.info.image_shape), jnp.float32)
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
        for ops, first in ((self.preprocess, {}), (self.augment, keys)):
            for call, module, arguments in ops:
                registry.check_arguments(repr(call), _keyword_only(module.apply), arguments)
                if ops is self.augment or module.PER_IMAGE:
                    apply = functools.partial(module.apply, **arguments)
                    _trial(repr(call), lambda f=apply, first=first: jax.eval_shape(f, first, image))

    def _check_model(self) -> None:
        """A trial, without computing, of making the model."""

        def trial() -> None:
            variables = jax.eval_shape(lambda: init_variables(self.model, 0, self.info.image_shape))
            if variables["batch_stats"] and self.config.accumulate > 1:
                raise UserError(
                    f"accumulate={self.config.accumulate}: batch normalisation needs the whole batch at once; use accumulate=1"
                )

        _trial(f"model {self.config.model.name}", trial)

    def _check_views(self) -> None:
        """Whether the pictures can be looked at so, and by this network; a trial without computing."""
        protocol = self.config.eval.views
        if protocol != "center" and not self.info.streamed:
            raise UserError(
                f"eval.views={protocol!r}: pictures of {self.info.name} have the network's own size and are seen whole; "
                "use 'center'"
            )
        if protocol == "dense":
            height, width, channels = self.info.image_shape

            def trial() -> None:
                variables = jax.eval_shape(lambda: init_variables(self.model, 0, self.info.image_shape))
                image = jax.ShapeDtypeStruct((1, 2 * height, 3 * width, channels), jnp.float32)
                jax.eval_shape(lambda v, x: self.model.apply(v, x, train=False), variables, image)

            _trial(f"eval.views='dense' with model {self.config.model.name}, which has to end in gap", trial)

    def _check_task(self) -> None:
        """Types of the task's arguments, and a trial of the objective."""
        name, arguments = registry.parse_call(self.config.task)
        objective = registry.find("tasks", name).objective
        registry.check_arguments(f"task {name}", _keyword_only(objective), arguments)
        logits = jax.ShapeDtypeStruct((1, self.info.classes), jnp.float32)
        labels = jax.ShapeDtypeStruct((1,), jnp.int32)
        _trial(
            repr(self.config.task), lambda: jax.eval_shape(functools.partial(objective, **arguments), logits, labels)
        )


def _keyword_only(f: Callable[..., Any]) -> dict[str, Any]:
    """The annotation of each keyword-only argument: what a call in a config may set."""
    parameters = inspect.signature(f, eval_str=True).parameters.values()
    return {p.name: p.annotation for p in parameters if p.kind == p.KEYWORD_ONLY}


def _trial(what: str, f: Callable[[], Any]) -> None:
    try:
        f()
    except ExitError:  # a signal may arrive here too
        raise
    except Exception as error:  # whatever wrong widths or numbers make flax or jax say
        raise UserError(f"{what}: {type(error).__name__}: {one_line(error)[:300]}") from error
