"""The conventional network on which the paper tests global average pooling (section 4.6): Hinton et al. 2012."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nin_jax.layers import Conv, LocalConv, gaussian, response_normalisation
from nin_jax.models._stages import POOLS, Head, Maps, Pool, classify, per_layer


class Model(nn.Module):
    """5x5 convolutions with ReLU and a 3x3 pool of stride 2 each, an unshared 3x3 convolution with ReLU, and a head.

    The first two pools are followed by response normalisation across 9 maps. On CIFAR the images of 32 x 32 become
    maps of 16, 8 and 4; the unshared layer ("local") pads by 1 and keeps the 4, as no source says otherwise.

    Attributes:
      num_classes: number of logits; 0: features in their place.
      widths: number of maps of each convolution.
      pools: "max", "avg" or "avg_padded" after each convolution.
      local_maps: number of maps of the unshared layer; None: one for each class, as global average pooling needs.
      head: "gap", the mean of each map of the unshared layer; "fc", a fully connected layer on those maps; or
        "fc_dropout", the same after dropout of 0.5 ("classic", Hinton's own form).
      deviations: initial standard deviation of the weights ("he": sqrt(2 / fan-in)): of each convolution, the unshared
        layer and the fully connected one if there is one, or one for all. Biases start at 0.
      dtype: what is computed in; parameters and logits are float32.
    """

    num_classes: int
    widths: Sequence[int] = (64, 64, 64)
    pools: Sequence[Pool] = ("max", "avg", "avg")
    local_maps: int | None = None
    head: Head = "gap"
    deviations: Sequence[float | str] = ("he",)
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        if len(self.pools) != len(self.widths):
            raise ValueError(f"{len(self.widths)} widths want as many pools: {self.pools}")
        if min(1 if self.local_maps is None else self.local_maps, *self.widths) < 1:
            raise ValueError(f"widths and local_maps must be 1 or more: {self.widths}, {self.local_maps}")
        if self.head == "gap" and self.num_classes and self.local_maps not in (None, self.num_classes):
            raise ValueError(
                f"local_maps={self.local_maps}: head 'gap' needs one map for each of {self.num_classes} classes"
            )
        self._deviations()
        super().__post_init__()

    @nn.nowrap
    def _deviations(self) -> tuple[float | str, ...]:
        return per_layer(self.deviations, len(self.widths) + (1 if self.head == "gap" else 2))

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool, example: jax.Array | None = None) -> tuple[jax.Array, Maps]:
        """Logits and maps of images, see `nin_jax.models`."""
        maps: Maps = {}
        deviations = self._deviations()
        x = image.astype(self.dtype)
        for i, (width, pool) in enumerate(zip(self.widths, self.pools, strict=True), 1):
            x = nn.relu(Conv(width, 5, gaussian(deviations[i - 1]), self.dtype, name=f"conv{i}")(x))
            maps[f"conv{i}"] = x
            x = maps[f"pool{i}"] = POOLS[pool]()(x)
            if i <= 2:
                x = maps[f"norm{i}"] = response_normalisation(x)
        of_classes = self.head == "gap" or self.local_maps is None  # the unshared layer has a map for each class
        if self.num_classes or not of_classes:
            init = gaussian(deviations[len(self.widths)])
            local = LocalConv(self.local_maps or self.num_classes, kernel_init=init, dtype=self.dtype, name="local")
            x = maps["local"] = nn.relu(local(x))
        if self.head == "gap" and self.num_classes:
            maps["class_maps"] = x
        call: Any = {"train": train, "example": example, "dropout": "classic"}
        return classify(self.head, x, self.num_classes, deviations[-1], **call), maps
