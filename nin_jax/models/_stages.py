"""The networks of the zoo as lists of stages, so that geometry and depth are data.

A stage is an object such as `MLPConv((96, 96, 96), size=11, stride=4, pad=0)`. It prints as the call
"mlpconv(maps=(96, 96, 96), size=11, stride=4, pad=0)", which configs hold and `parse` reads.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from nin_jax import layers, registry
from nin_jax.errors import UserError, nearest
from nin_jax.layers import gaussian
from nin_jax.layers.cpu.pieces import in_pieces
from nin_jax.layers.mlpconv import Maps

Head = Literal["gap", "fc", "fc_dropout"]


@dataclass(frozen=True)
class Stage:
    """What all stages share. `str` shows all arguments but keyword-only ones that have their default."""

    @staticmethod
    def parse(call: str) -> Stage:
        """The function `parse`, where `registry` looks for it when it reads a config."""
        return parse(call)

    def __str__(self) -> str:
        fields = [f for f in dataclasses.fields(self) if not f.kw_only or getattr(self, f.name) != f.default]
        return f"{CALLS.get(type(self), type(self).__name__)}({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in fields)})"


@dataclass(frozen=True)
class MLPConv(Stage):
    """An mlpconv layer, see `layers.MLPConv`.

    Attributes:
      maps: number of maps of each layer; a single one is a plain convolution with ReLU.
      size, stride, pad, groups: of the first layer; pad None keeps the image's size.
      deviations: initial deviation of each layer's weights ("he": sqrt(2 / fan-in)), or one for all.
      bias: initial value of the biases of the last layer; the others start at 0.
      relu: whether the last layer ends in a ReLU.
      norm: whether the last layer is normalised where the others are.
    """

    maps: Sequence[int]
    _: KW_ONLY
    size: int = 1
    stride: int = 1
    pad: int | None = None
    groups: int = 1
    deviations: Sequence[float | str] = ("he",)
    bias: float = 0.0
    relu: bool = True
    norm: bool = True

    def __post_init__(self) -> None:
        if min(self.maps, default=0) < 1 or min(self.size, self.stride, self.groups) < 1 or (self.pad or 0) < 0:
            raise ValueError(f"{self}: maps, size, stride and groups must be 1 or more, pad 0 or more")
        if self.pad is None and self.size % 2 == 0:
            raise ValueError(f"{self}: size must be odd, or pad a number")
        per_layer(self.deviations, len(self.maps))

    def rows(self, names: Sequence[str], batch_norm: bool) -> list[layers.Layer]:
        """Its layers, with these names."""
        *inner, last = zip(names, self.maps, map(gaussian, per_layer(self.deviations, len(self.maps))), strict=True)
        bias = None if batch_norm and self.norm else self.bias
        return [
            *(layers.Layer(*row, None if batch_norm else 0.0) for row in inner),
            layers.Layer(*last, bias, self.relu),
        ]


class ClassMaps(MLPConv):
    """The 1x1 layer on top, with one map for each class."""


@dataclass(frozen=True)
class MaxPool(Stage):
    """See `layers.max_pool`."""

    size: int = 3
    stride: int = 2
    _: KW_ONLY
    start: int = 0

    def __call__(self, x: jax.Array) -> jax.Array:
        return layers.max_pool(x, self.size, self.stride, self.start)


@dataclass(frozen=True)
class AvgPool(MaxPool):
    """See `layers.avg_pool`."""

    count_zeros: bool = field(default=False, kw_only=True)

    def __call__(self, x: jax.Array) -> jax.Array:
        return layers.avg_pool(x, self.size, self.stride, self.start, count_zeros=self.count_zeros)


@dataclass(frozen=True)
class ResponseNormalisation(Stage):
    """See `layers.response_normalisation`."""

    size: int = 5
    alpha: float = 0.0001
    beta: float = 0.75

    def __call__(self, x: jax.Array) -> jax.Array:
        return layers.response_normalisation(x, self.size, self.alpha, self.beta)


@dataclass(frozen=True)
class Dropout(Stage):
    """See `layers.Dropout`."""

    rate: float = 0.5
    _: KW_ONLY
    kind: Literal["classic", "inverted", "unscaled"] = "inverted"


# The name of each in a config, and below that of its maps: "pool" for "pool1", "pool2", ...
CALLS: dict[type[Stage], str] = {
    MLPConv: "mlpconv",
    MaxPool: "max_pool",
    AvgPool: "avg_pool",
    ResponseNormalisation: "response_normalisation",
    Dropout: "dropout",
}
LABELS = {
    MLPConv: "conv",
    ClassMaps: "cccp",
    MaxPool: "pool",
    AvgPool: "pool",
    ResponseNormalisation: "norm",
    Dropout: "dropout",
}
STAGES = {call: stage for stage, call in CALLS.items()}

# The pools that a model may name: 3x3 of stride 2.
Pool = Literal["max", "avg", "avg_padded"]
POOLS: dict[str, Callable[..., MaxPool | AvgPool]] = {
    "max": MaxPool,
    "avg": AvgPool,
    "avg_padded": functools.partial(AvgPool, count_zeros=True),
}


def parse(call: Stage | str) -> Stage:
    """The stage that a call describes. Raises `UserError` naming what is wrong with it."""
    if isinstance(call, Stage):
        return call
    if not isinstance(call, str):
        raise UserError(f"stage {call!r}: must be a call such as 'max_pool(size=3, stride=2)'")
    name, arguments = registry.parse_call(call)
    if name not in STAGES:
        raise UserError(f"{call!r}: unknown stage {name!r}: {nearest(name, STAGES)}")
    hints = typing.get_type_hints(STAGES[name])
    legal = {field.name: hints[field.name] for field in dataclasses.fields(STAGES[name])}
    registry.check_arguments(f"stage {call!r}", legal, arguments)
    try:
        return STAGES[name](**arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"stage {call!r}: {error}") from error


def per_layer(deviations: Sequence[float | str], depth: int) -> tuple[float | str, ...]:
    """The standard deviation of each of `depth` layers, from as many or from one for all. Raises ValueError."""
    if len(deviations) not in (1, depth):
        raise ValueError(f"deviations: {len(deviations)} numbers for {depth} layers; give 1 or {depth}")
    if any(d != "he" and not float(d) >= 0 for d in deviations):
        raise ValueError(f"deviations must be 'he' or 0 or more: {deviations}")
    return tuple(deviations) * (depth if len(deviations) == 1 else 1)


class Named(NamedTuple):
    """A stage, the name of its variables, and the names of its maps."""

    stage: Stage
    name: str
    maps: tuple[str, ...]


def named(stages: Iterable[Stage]) -> list[Named]:
    """Stages with names: conv1, cccp1, cccp2, conv2, cccp3, ... as in the authors' files; pool1, norm1, dropout1, ...

    Their weights are under mlpconv1, mlpconv2, ... and class_maps.
    """
    count = collections.Counter[str]()

    def number(label: str) -> str:
        count[label] += 1
        return f"{label}{count[label]}"

    plan = []
    for stage in stages:
        name, maps = "", (number(LABELS[type(stage)]),)
        if isinstance(stage, MLPConv):
            maps += tuple(number("cccp") for _ in stage.maps[1:])
            name = "class_maps" if isinstance(stage, ClassMaps) else f"mlpconv{count['conv']}"
        plan.append(Named(stage, name or maps[0], maps))
    return plan


class Network(nn.Module):
    """Stages, one after the other, and a head. Layers have the names of `named`.

    Attributes:
      num_classes: number of logits; 0: features in their place, see `nin_jax.models`.
      head: what turns the class maps into logits. "gap": the mean of each map (paper section 3.2). "fc": a fully connected
        layer on the class maps (Table 5). "fc_dropout": the same after dropout of 0.5.
      relu_on_class_maps: the paper's equation 2 and both releases rectify the class maps too.
      class_map_bias: initial value of the biases of the class maps, 0 in both releases. The same number for all classes
        changes no probability; above 0, it keeps the maps from starting in the flat part of their ReLU.
      batch_norm: batch normalisation before the ReLU of every layer but the class maps, instead of a bias; not in the
        paper.
      dtype: what is computed in; parameters and logits are float32.
      axis_name: mapped axis whose replicas share the batch-norm statistics.
    """

    num_classes: int
    head: Head = "gap"
    relu_on_class_maps: bool = True
    class_map_bias: float = 0.0
    batch_norm: bool = False
    dtype: Any = jnp.float32
    axis_name: str | None = None

    def __post_init__(self) -> None:
        self.stages()  # raises ValueError where they do not fit
        super().__post_init__()

    @nn.nowrap
    def stages(self) -> list[Stage]:
        """All stages, including the one of the class maps."""
        raise NotImplementedError

    def forward(self, image: jax.Array, *, train: bool, example: jax.Array | None) -> tuple[jax.Array, Maps]:
        """The output of the last stage, and every named map: all layers' outputs, "pool1", "norm1", ..."""
        maps: Maps = {}
        x, plan = image.astype(self.dtype), named(self.stages())
        for (stage, name, names), following in zip(plan, [*plan[1:], None], strict=True):
            if isinstance(stage, MLPConv):
                window = {"size": stage.size, "stride": stage.stride, "pad": stage.pad, "groups": stage.groups}
                form = {"dtype": self.dtype, "axis_name": self.axis_name, "name": name}
                mlpconv = layers.MLPConv(stage.rows(names, self.batch_norm), **window, **form)
                if not train and following and isinstance(following.stage, MaxPool):
                    outputs, maps[following.name] = in_pieces(mlpconv, following.stage, x)
                else:
                    outputs = mlpconv(x, train=train)
                maps |= outputs
                x = maps[names[-1]]
            elif isinstance(stage, Dropout):
                x = layers.Dropout(stage.rate, stage.kind, name=name)(x, train=train, example=example)
            elif name in maps:  # computed with the mlpconv before it
                x = maps[name]
            elif isinstance(stage, MaxPool | ResponseNormalisation):
                x = maps[name] = stage(x)
        return x, maps


def classify(
    head: Head,
    x: jax.Array,
    num_classes: int,
    deviation: float | str,
    *,
    train: bool = False,
    example: jax.Array | None = None,
    dropout: Literal["classic", "inverted"] = "inverted",
    name: str = "fc",
) -> jax.Array:
    """float32 logits `[B, num_classes]` of the last maps by a head (see `Network`), inside a Flax module's `__call__`.

    The weights of a fully connected layer start with `deviation`. Without classes the means of the maps are returned, or
    the units `[B, D]` of the last hidden layer.
    """
    if not num_classes and x.ndim == 2:
        return x.astype(jnp.float32)
    if head == "gap" or not num_classes:
        return layers.global_average_pool(x)
    x = x.reshape(x.shape[0], -1).astype(jnp.float32)
    if head == "fc_dropout":
        x = layers.Dropout(0.5, dropout, name=f"dropout_{name}")(x, train=train, example=example)
    return nn.Dense(num_classes, kernel_init=gaussian(deviation), name=name)(x)


class Stages(Network):
    """A network whose stages are an argument. Attributes besides those of `Network`:

    Attributes:
      layers: the stages, as objects or as calls.
      hidden: number of units of each fully connected layer with ReLU between the last stage and the linear classifier, with
        heads "fc" and "fc_dropout" (which then drops out before each but the first). They replace the class maps.
      hidden_deviation: standard deviation of their initial weights.
      hidden_bias: their initial biases.
      class_deviation: initial deviation of the weights of the class maps and of the linear classifier.
    """

    layers: Sequence[Stage | str] = ()
    hidden: Sequence[int] = ()
    hidden_deviation: float | str = 0.01
    hidden_bias: float = 0.0
    class_deviation: float | str = 0.01

    @nn.nowrap
    def stages(self) -> list[Stage]:
        if not self.layers:
            raise ValueError("layers must name at least one stage")
        stages = [parse(stage) for stage in self.layers]
        if not self.num_classes or (self.head != "gap" and self.hidden):
            return stages
        form = {"deviations": (self.class_deviation,), "bias": self.class_map_bias, "relu": self.relu_on_class_maps}
        return [*stages, ClassMaps((self.num_classes,), norm=False, **form)]

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool, example: jax.Array | None = None) -> tuple[jax.Array, Maps]:
        """Logits and maps of images, see `nin_jax.models`."""
        x, maps = self.forward(image, train=train, example=example)
        hidden: Sequence[int] = () if self.head == "gap" else self.hidden
        if hidden:
            x = x.reshape(x.shape[0], -1)
        elif self.num_classes:
            maps["class_maps"] = x
        start = {
            "kernel_init": gaussian(self.hidden_deviation),
            "bias_init": nn.initializers.constant(self.hidden_bias),
        }
        for i, units in enumerate(hidden, 1):
            if self.head == "fc_dropout" and i > 1:
                x = layers.Dropout(0.5, name=f"dropout_fc{i}")(x, train=train, example=example)
            x = nn.relu(nn.Dense(units, dtype=self.dtype, **start, name=f"fc{i}")(x))
        call: Any = {"train": train, "example": example, "name": f"fc{len(hidden) + 1}"}
        return classify(self.head, x, self.num_classes, self.class_deviation, **call), maps
