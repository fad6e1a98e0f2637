"""Network In Network with a radial basis network as the micro network: the alternative that section 3.1 of the paper names.

"Radial basis network and multilayer perceptron are two well known universal function approximators. We choose multilayer
perceptron in this work."
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from nin_jax.layers import BatchNorm, Conv, Dropout, RadialBasis, gaussian, max_pool
from nin_jax.models._stages import Maps, classify


class Model(nn.Module):
    """Radial basis networks slid over the input, with 3x3 max pools of stride 2 and dropout between, and an average on top.

    Each is Gaussian units on the window ("radial1", ...) and a linear layer on them ("cccp1", ...). The last linear layer
    makes the class maps, whose means are the logits.

    Attributes:
      num_classes: number of logits; 0: features in their place, the means of the last Gaussian units.
      kernels: side of each window, odd.
      units: number of Gaussian units of each micro network.
      widths: number of maps of each micro network but the last.
      dropout, dropout_kind: after each pool, see `layers.Dropout`.
      batch_norm: normalises the maps of each linear layer but the last, in place of its bias.
      dtype: what is computed in; parameters and logits are float32.
      axis_name: mapped axis whose replicas share the statistics of batch normalisation.
    """

    num_classes: int
    kernels: Sequence[int] = (5, 5, 3)
    units: Sequence[int] = (192, 192, 192)
    widths: Sequence[int] = (96, 192)
    dropout: float = 0.5
    dropout_kind: Literal["classic", "inverted"] = "inverted"
    batch_norm: bool = False
    dtype: Any = jnp.float32
    axis_name: str | None = None

    def __post_init__(self) -> None:
        if not len(self.kernels) == len(self.units) == len(self.widths) + 1:
            raise ValueError(f"kernels, units, and one width less: {self.kernels}, {self.units}, {self.widths}")
        if min(*self.kernels, *self.units, *self.widths) < 1 or not all(size % 2 for size in self.kernels):
            raise ValueError(
                f"kernels must be odd, units and widths 1 or more: {self.kernels}, {self.units}, {self.widths}"
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool, example: jax.Array | None = None) -> tuple[jax.Array, Maps]:
        """Logits and maps of images, see `nin_jax.models`."""
        maps: Maps = {}
        x = image.astype(self.dtype)
        for i, (size, units) in enumerate(zip(self.kernels, self.units, strict=True), 1):
            x = maps[f"radial{i}"] = RadialBasis(units, size, self.dtype, name=f"radial{i}")(x)
            top = i == len(self.kernels)
            if top and not self.num_classes:
                break
            normal = self.batch_norm and not top
            width, bias = self.num_classes if top else self.widths[i - 1], None if normal else 0.0
            x = Conv(width, 1, gaussian("he"), self.dtype, bias=bias, name=f"cccp{i}")(x)
            if normal:
                x = BatchNorm(axis_name=self.axis_name, name=f"cccp{i}_norm")(x, train=train)
            maps["class_maps" if top else f"cccp{i}"] = x
            if not top:
                x = maps[f"pool{i}"] = max_pool(x)
                x = Dropout(self.dropout, self.dropout_kind, name=f"dropout{i}")(x, train=train, example=example)
        return classify("gap", x, self.num_classes, "he"), maps
