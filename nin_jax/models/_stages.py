"""One language for the networks of the zoo: a list of stages, so that their geometry and depth are data.

A stage is an object such as `MLPConv((96, 96, 96), size=11, stride=4, pad=0)`. It prints as a call,
"mlpconv(maps=(96, 96, 96), size=11, stride=4, pad=0)", which `parse` reads and configs hold.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from nin_jax import layers, registry
from nin_jax.errors import UserError, nearest
from nin_jax.layers import gaussian
from nin_jax.layers.cpu.pieces import in_pieces


@dataclass(frozen=True)
class Stage:
    """What all stages share. `str` shows the keyword-only arguments that are not the default, and all others."""

    call: ClassVar[str]  # its name in a config
    label: ClassVar[str]  # of its maps: "pool" for "pool1", "pool2", ...

    def __str__(self) -> str:
        fields = [f for f in dataclasses.fields(self) if not f.kw_only or getattr(self, f.name) != f.default]
        return f"{self.call}({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in fields)})"


@dataclass(frozen=True)
class MLPConv(Stage):
    """An mlpconv layer, see `layers.MLPConv`.

    Attributes:
      maps: number of maps of each layer; one alone is a plain convolution with ReLU.
      size, stride, pad, groups: of the first layer; pad None keeps the image's size.
      deviations: initial deviation of each layer's weights ("he": sqrt(2 / fan-in)), or one for all.
      bias: what the biases of the last layer start at; the others start at 0.
      relu: whether the last layer ends in a ReLU.
      norm: whether the last layer is normalised where the others are.
    """

    call: ClassVar[str] = "mlpconv"
    label: ClassVar[str] = "conv"
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
        table = list(zip(names, self.maps, per_layer(self.deviations, len(self.maps)), strict=True))
        inner = [layers.Layer(name, n, gaussian(d), None if batch_norm else 0.0) for name, n, d in table[:-1]]
        name, n, deviation = table[-1]
        bias = None if batch_norm and self.norm else self.bias
        return [*inner, layers.Layer(name, n, gaussian(deviation), bias, self.relu)]


@dataclass(frozen=True)
class ClassMaps(MLPConv):
    """The 1x1 layer on top, which makes a map for each class. It is not normalised."""

    label: ClassVar[str] = "cccp"
    norm: bool = False


@dataclass(frozen=True)
class MaxPool(Stage):
    """See `layers.max_pool`."""

    call: ClassVar[str] = "max_pool"
    label: ClassVar[str] = "pool"
    size: int = 3
    stride: int = 2
    _: KW_ONLY
    start: int = 0

    def __call__(self, x: jax.Array) -> jax.Array:
        return layers.max_pool(x, self.size, self.stride, self.start)


@dataclass(frozen=True)
class AvgPool(Stage):
    """See `layers.avg_pool`."""

    call: ClassVar[str] = "avg_pool"
    label: ClassVar[str] = "pool"
    size: int = 3
    stride: int = 2
    _: KW_ONLY
    start: int = 0
    count_zeros: bool = False

    def __call__(self, x: jax.Array) -> jax.Array:
        return layers.avg_pool(x, self.size, self.stride, self.start, count_zeros=self.count_zeros)


@dataclass(frozen=True)
class ResponseNormalisation(Stage):
    """See `layers.response_normalisation`."""

    call: ClassVar[str] = "response_normalisation"
    label: ClassVar[str] = "norm"
    size: int = 5
    alpha: float = 0.0001
    beta: float = 0.75

    def __call__(self, x: jax.Array) -> jax.Array:
        return layers.response_normalisation(x, self.size, self.alpha, self.beta)


@dataclass(frozen=True)
class Dropout(Stage):
    """See `layers.Dropout`."""

    call: ClassVar[str] = "dropout"
    label: ClassVar[str] = "dropout"
    rate: float = 0.5
    _: KW_ONLY
    kind: Literal["classic", "inverted", "unscaled"] = "inverted"


STAGES = {stage.call: stage for stage in (MLPConv, MaxPool, AvgPool, ResponseNormalisation, Dropout)}

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
    """A deviation for each of `depth` layers, given as many or one for all. Raises ValueError."""
    if len(deviations) not in (1, depth):
        raise ValueError(f"deviations: {len(deviations)} numbers for {depth} layers; give 1 or {depth}")
    if any(d != "he" and not float(d) >= 0 for d in deviations):
        raise ValueError(f"deviations must be 'he' or 0 or more: {deviations}")
    return tuple(deviations) * (depth if len(deviations) == 1 else 1)


class Named(NamedTuple):
    """A stage, the name of its variables, and the names of the maps that it makes."""

    stage: Stage
    name: str
    maps: tuple[str, ...]


def named(stages: Iterable[Stage]) -> list[Named]:
    """Stages with names: conv1, cccp1, cccp2, conv2, cccp3, ... as in the authors' files; pool1, norm1, dropout1, ...

    The weights of the layers lie in mlpconv1, mlpconv2, ... and class_maps.
    """
    count = collections.Counter[str]()

    def number(kind: str) -> str:
        count[kind] += 1
        return f"{kind}{count[kind]}"

    plan = []
    for stage in stages:
        maps = (number(stage.label),)
        if isinstance(stage, ClassMaps):
            plan.append(Named(stage, "class_maps", maps))
        elif isinstance(stage, MLPConv):
            maps += tuple(number("cccp") for _ in stage.maps[1:])
            plan.append(Named(stage, f"mlpconv{count['conv']}", maps))
        else:
            plan.append(Named(stage, maps[0], maps))
    return plan


def forward(
    stages: Iterable[Stage],
    x: jax.Array,
    *,
    train: bool,
    example: jax.Array | None,
    dtype: Any,
    batch_norm: bool = False,
    axis_name: str | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Feeds x through the stages, inside a Flax module's `__call__`.

    Returns:
      the output of the last stage, and every named map: all layers' outputs, "pool1", "norm1", ...
    """
    maps: dict[str, jax.Array] = {}
    x, plan = x.astype(dtype), named(stages)
    for (stage, name, names), following in zip(plan, [*plan[1:], None], strict=True):
        if isinstance(stage, MLPConv):
            window = {"size": stage.size, "stride": stage.stride, "pad": stage.pad, "groups": stage.groups}
            rows = stage.rows(names, batch_norm)
            mlpconv = layers.MLPConv(rows, **window, dtype=dtype, axis_name=axis_name, name=name)
            if not train and following and isinstance(following.stage, MaxPool | AvgPool):
                outputs, maps[following.name] = in_pieces(mlpconv, following.stage, x)
            else:
                outputs = mlpconv(x, train=train)
            maps |= outputs
            x = maps[names[-1]]
        elif isinstance(stage, Dropout):
            x = layers.Dropout(stage.rate, stage.kind, name=name)(x, train=train, example=example)
        elif name in maps:  # computed with the mlpconv before it
            x = maps[name]
        else:
            x = maps[name] = stage(x)
    return x, maps


def classify(
    head: Literal["gap", "fc", "fc_dropout"],
    x: jax.Array,
    num_classes: int,
    deviation: float | str,
    *,
    train: bool = False,
    example: jax.Array | None = None,
    dropout: Literal["classic", "inverted"] = "inverted",
    name: str = "fc",
) -> jax.Array:
    """float32 logits `[B, num_classes]` of the last maps, inside a Flax module's `__call__`.

    "gap": the mean of each map (paper section 3.2). "fc": a fully connected layer, whose weights start with `deviation`.
    "fc_dropout": the same after dropout of 0.5.
    """
    if head == "gap":
        return layers.global_average_pool(x)
    x = x.reshape(x.shape[0], -1).astype(jnp.float32)
    if head == "fc_dropout":
        x = layers.Dropout(0.5, dropout, name=f"dropout_{name}")(x, train=train, example=example)
    return nn.Dense(num_classes, kernel_init=gaussian(deviation), name=name)(x)


class Stages(nn.Module):
    """Stages, one after the other, and a head.

    Layers have the names of `named`; the maps are every layer's output, "pool1", "norm1", ..., and "class_maps" where the
    head has them.

    Attributes:
      num_classes: number of logits.
      layers: the stages, as objects or as calls.
      head: "gap": a 1x1 layer of a map for each class and the mean of each map (paper section 3.2). "fc": `hidden` fully
        connected layers with ReLU on the maps of the last stage, and a linear classifier; where `hidden` is empty, the
        classifier lies on the class maps (paper, Table 5). "fc_dropout": the same with dropout of 0.5 before each
        fully connected layer but the first hidden one.
      hidden: number of units of each hidden layer.
      hidden_deviation, hidden_bias: what their weights and biases start at.
      class_deviation: initial deviation of the weights of the class maps and of the linear classifier.
      relu_on_class_maps: both releases rectify the class maps.
      class_map_bias: what the biases of the class maps start at.
      batch_norm: normalises every layer of the stages before its ReLU, in place of its bias.
      dtype: what is computed in; parameters and logits are float32.
      axis_name: mapped axis whose replicas share the statistics of batch normalisation.
    """

    num_classes: int
    layers: Sequence[Stage | str] = ()
    head: Literal["gap", "fc", "fc_dropout"] = "gap"
    hidden: Sequence[int] = ()
    hidden_deviation: float | str = 0.01
    hidden_bias: float = 0.0
    class_deviation: float | str = 0.01
    relu_on_class_maps: bool = True
    class_map_bias: float = 0.0
    batch_norm: bool = False
    dtype: Any = jnp.float32
    axis_name: str | None = None

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("layers must name at least one stage")
        self.stages()  # raises where they do not fit
        super().__post_init__()

    @nn.nowrap
    def stages(self) -> list[Stage]:
        """The stages, with that of the class maps where there is one."""
        stages = [parse(stage) for stage in self.layers]
        if self.head != "gap" and self.hidden:
            return stages
        form = {"bias": self.class_map_bias, "relu": self.relu_on_class_maps}
        return [*stages, ClassMaps((self.num_classes,), deviations=(self.class_deviation,), **form)]

    @nn.compact
    def __call__(
        self, image: jax.Array, *, train: bool, example: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Logits and maps of images, see `nin_jax.models`."""
        form = {"dtype": self.dtype, "batch_norm": self.batch_norm, "axis_name": self.axis_name}
        x, maps = forward(self.stages(), image, train=train, example=example, **form)
        hidden: Sequence[int] = () if self.head == "gap" else self.hidden
        if not hidden:
            maps["class_maps"] = x
        else:
            x = x.reshape(x.shape[0], -1)
        bias = nn.initializers.constant(self.hidden_bias)
        for i, units in enumerate(hidden, 1):
            if self.head == "fc_dropout" and i > 1:
                x = layers.Dropout(0.5, name=f"dropout_fc{i}")(x, train=train, example=example)
            dense = nn.Dense(
                units, True, self.dtype, kernel_init=gaussian(self.hidden_deviation), bias_init=bias, name=f"fc{i}"
            )
            x = nn.relu(dense(x))
        call: Any = {"train": train, "example": example, "name": f"fc{len(hidden) + 1}"}
        return classify(self.head, x, self.num_classes, self.class_deviation, **call), maps
