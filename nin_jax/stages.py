"""Networks as a list of stages, so that their geometry and depth are data: the ImageNet nets of the zoo.

A stage is a call in a string, like those of a config's `preprocess`, with the arguments of one of the classes below.
"""

from __future__ import annotations

import collections
import typing
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from nin_jax import layers, registry
from nin_jax.errors import nearest
from nin_jax.layers import Dropout, MLPConv, gaussian, global_average_pool


class Mlpconv(NamedTuple):
    """An mlpconv layer, such as "mlpconv(maps=(96, 96, 96), size=11, stride=4, pad=0, deviations=(0.01, 0.05, 0.05))".

    See `layers.MLPConv`.

    Attributes:
      maps: number of maps of each layer; one alone is a plain convolution with ReLU.
      size, stride, pad, groups: of the first layer; pad None keeps the picture's size.
      deviations: initial deviation of each layer's weights ("he": sqrt(2 / fan-in)), or one for all.
      bias: what the biases of the last layer start at.
    """

    maps: Sequence[int]
    size: int = 1
    stride: int = 1
    pad: int | None = None
    groups: int = 1
    deviations: Sequence[float | str] = ("he",)
    bias: float = 0.0


class MaxPool(NamedTuple):
    """As "max_pool(size=3, stride=2)": see `layers.max_pool`."""

    size: int = 3
    stride: int = 2


class AvgPool(NamedTuple):
    """As "avg_pool(size=3, stride=2)": see `layers.avg_pool`."""

    size: int = 3
    stride: int = 2


class ResponseNormalisation(NamedTuple):
    """As "response_normalisation(size=5, alpha=0.0001, beta=0.75)": see `layers.response_normalisation`."""

    size: int = 5
    alpha: float = 0.0001
    beta: float = 0.75


class Drop(NamedTuple):
    """Dropout, as "dropout(rate=0.5)": inverted, as Caffe's."""

    rate: float = 0.5


Stage = Mlpconv | MaxPool | AvgPool | ResponseNormalisation | Drop
KINDS: dict[str, type[Stage]] = {
    "mlpconv": Mlpconv,
    "max_pool": MaxPool,
    "avg_pool": AvgPool,
    "response_normalisation": ResponseNormalisation,
    "dropout": Drop,
}


def parse(call: str) -> Stage:
    """The stage that a call describes. Raises `errors.UserError` naming what is wrong with it."""
    name, arguments = registry.parse_call(call)
    if name not in KINDS:
        raise ValueError(f"{call!r}: unknown stage {name!r}: {nearest(name, KINDS)}")
    registry.check_arguments(f"stage {call!r}", typing.get_type_hints(KINDS[name]), arguments)
    return KINDS[name](**arguments)


class Stages(nn.Module):
    """Stages, one after the other, and a head.

    Layers are named conv1, cccp1, cccp2, conv2, cccp3, ... as in the authors' files; their weights lie in mlpconv1,
    mlpconv2, ... Pools and normalisations are pool1, norm1, ...

    Attributes:
      num_classes: number of logits.
      layers: the stages.
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
    """

    num_classes: int
    layers: Sequence[str] = ()
    head: Literal["gap", "fc", "fc_dropout"] = "gap"
    hidden: Sequence[int] = ()
    hidden_deviation: float | str = 0.01
    hidden_bias: float = 0.0
    class_deviation: float | str = 0.01
    relu_on_class_maps: bool = True
    class_map_bias: float = 0.0
    batch_norm: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, image: jax.Array, *, train: bool, example: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Classifies images.

        Args:
          image: `[B, H, W, C]`, float32 or bfloat16; with head "gap" any H and W that the pools leave a position of.
          train: whether dropout is on; it then needs the rng "dropout".
          example: int32 `[B]`, index of each image in the global batch, which dropout is keyed by. Default 0 to B - 1.

        Returns:
          float32 logits `[B, num_classes]`, and every named map `[B, H', W', C']`: each layer's output, "pool1", ...,
          and, where they are, "class_maps" (their layer's output once more).
        """
        if not self.layers:
            raise ValueError("layers must name at least one stage")
        maps: dict[str, jax.Array] = {}
        count = collections.Counter[str]()

        def named(kind: str) -> str:
            count[kind] += 1
            return f"{kind}{count[kind]}"

        def drop(x: jax.Array, rate: float, name: str) -> jax.Array:
            return Dropout(rate, name=name)(x, train=train, example=example)

        x: Any = image.astype(self.dtype)
        for stage in map(parse, self.layers):
            if isinstance(stage, Mlpconv):
                names = [named("conv"), *(named("cccp") for _ in stage.maps[1:])]
                s, mlpconv = stage, f"mlpconv{count['conv']}"
                deviations = tuple(s.deviations) * (len(s.maps) if len(s.deviations) == 1 else 1)
                geometry = {"stride": s.stride, "pad": s.pad, "groups": s.groups}
                form = {"bias_last": s.bias, "batch_norm": self.batch_norm, "dtype": self.dtype, "name": mlpconv}
                outputs = MLPConv(names, s.maps, s.size, deviations, **geometry, **form)(x, train=train)
                maps |= outputs
                x = outputs[names[-1]]
            elif isinstance(stage, Drop):
                x = drop(x, stage.rate, named("dropout"))
            elif isinstance(stage, ResponseNormalisation):
                x = maps[named("norm")] = layers.response_normalisation(x, *stage)
            else:
                x = maps[named("pool")] = (layers.max_pool if isinstance(stage, MaxPool) else layers.avg_pool)(
                    layers.exact(x), *stage
                )

        if self.head == "gap" or not self.hidden:
            name = named("cccp")
            form = {"relu_last": self.relu_on_class_maps, "bias_last": self.class_map_bias, "dtype": self.dtype}
            top = MLPConv([name], [self.num_classes], 1, [self.class_deviation], **form, name="class_maps")
            x = maps[name] = maps["class_maps"] = top(x)[name]
        if self.head == "gap":
            return global_average_pool(x), maps
        x = x.reshape(x.shape[0], -1)
        for i, units in enumerate(self.hidden, 1):
            if self.head == "fc_dropout" and i > 1:
                x = drop(x, 0.5, f"dropout_fc{i}")
            start = {
                "kernel_init": gaussian(self.hidden_deviation),
                "bias_init": nn.initializers.constant(self.hidden_bias),
            }
            x = nn.relu(nn.Dense(units, dtype=self.dtype, **start, name=f"fc{i}")(x))
        x, last = x.astype(jnp.float32), len(self.hidden) + 1
        if self.head == "fc_dropout":
            x = drop(x, 0.5, f"dropout_fc{last}")
        return nn.Dense(self.num_classes, kernel_init=gaussian(self.class_deviation), name=f"fc{last}")(x), maps
