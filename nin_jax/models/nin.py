"""Network In Network (paper section 3, figure 2): mlpconv layers, pools between them, global average pooling on top."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax

from nin_jax.models._stages import POOLS, Dropout, Maps, MLPConv, Network, Pool, Stage, classify, per_layer


class Model(Network):
    """A stack of mlpconv layers. The last one has a map for each class; the mean of the map is the class's logit.

    Layers are named as in the authors' release: conv1, cccp1, cccp2, conv2, cccp3, ... All but the last mlpconv are
    followed by a 3x3 pool of stride 2 and by dropout. The maps are every layer's output, "pool1", ..., and "class_maps".

    Attributes besides those of `Network`:

    Attributes:
      kernels: side of each mlpconv's first kernel, such as (5, 5, 3).
      widths: number of maps of each mlpconv's layers, such as ((192, 160, 96), (192, 192, 192), (192, 192)). The
        class maps, a last 1x1 layer of `num_classes` maps in the last mlpconv, come on top and are not listed.
      pools: of each mlpconv but the last, "max", "avg", or as in some ports "avg_padded", which divides by 9 at the
        edges too.
      pool_start: where the first window of a pool starts: 0, as in both releases, or -1, as in most ports to PyTorch
        (`padding=1`).
      deviations: initial standard deviation of the weights ("he": sqrt(2 / fan-in)), one for each layer or one for all.
        The weights of a fully connected layer start as those of the last layer.
      dropout: probability of a zero after each pool.
      dropout_kind: "classic" or "inverted", see `layers.Dropout`.
    """

    kernels: Sequence[int] = (5, 5, 3)
    widths: Sequence[Sequence[int]] = ((192, 160, 96), (192, 192, 192), (192, 192))
    pools: Sequence[Pool] = ("max", "max")
    pool_start: Literal[0, -1] = 0
    deviations: Sequence[float | str] = (0.05,)
    dropout: float = 0.5
    dropout_kind: Literal["classic", "inverted"] = "classic"

    @nn.nowrap
    def stages(self) -> list[Stage]:
        if not len(self.kernels) == len(self.widths) == len(self.pools) + 1:
            raise ValueError(
                f"{len(self.widths)} widths want as many kernels and one pool less: {self.kernels}, {self.pools}"
            )
        deviations = per_layer(self.deviations, sum(map(len, self.widths)) + 1)
        widths, top = list(self.widths), {}
        if self.num_classes:
            widths[-1] = *widths[-1], self.num_classes
            top = {"bias": self.class_map_bias, "relu": self.relu_on_class_maps, "norm": False}
        stages: list[Stage] = []
        for size, width, pool in zip(self.kernels, widths, [*self.pools, None], strict=True):
            own, deviations = deviations[: len(width)], deviations[len(width) :]
            if pool is not None:
                stages += [MLPConv(width, size=size, deviations=own), POOLS[pool](start=self.pool_start)]
                stages.append(Dropout(self.dropout, kind=self.dropout_kind))
            else:
                stages.append(MLPConv(width, size=size, deviations=own, **top))
        return stages

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool, example: jax.Array | None = None) -> tuple[jax.Array, Maps]:
        """Logits and maps of images, see `nin_jax.models`."""
        call: Any = {"train": train, "example": example}
        x, maps = self.forward(image, **call)
        if self.num_classes:
            maps["class_maps"] = x
        deviation = self.deviations[-1]
        return classify(self.head, x, self.num_classes, deviation, **call, dropout=self.dropout_kind), maps
