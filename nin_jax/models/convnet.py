"""The conventional network that the paper holds global average pooling against (section 4.6): Hinton et al. 2012."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from nin_jax.layers import POOLS, Conv, Dropout, LocalConv, exact, gaussian, global_average_pool, response_normalisation


class Model(nn.Module):
    """5x5 convolutions with ReLU and a 3x3 pool of stride 2 each, an unshared 3x3 convolution with ReLU, and a head.

    The first two pools are followed by response normalisation across 9 maps. On CIFAR the pictures of 32 x 32 become
    maps of 16, 8 and 4; the unshared layer ("local") pads by 1 and keeps the 4, as no source says otherwise.

    Attributes:
      num_classes: number of logits.
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
    pools: Sequence[Literal["max", "avg", "avg_padded"]] = ("max", "avg", "avg")
    local_maps: int | None = None
    head: Literal["gap", "fc", "fc_dropout"] = "gap"
    deviations: Sequence[float | str] = ("he",)
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, image: jax.Array, *, train: bool, example: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Classifies images.

        Args:
          image: `[B, H, W, C]`, float32 or bfloat16.
          train: whether dropout is on; it then needs the rng "dropout".
          example: int32 `[B]`, index of each image in the global batch, which dropout is keyed by. Default 0 to B - 1.

        Returns:
          float32 logits `[B, num_classes]`, and the maps `[B, H', W', C']` "conv1", "pool1", "norm1", "conv2", ...,
          "local" and, where their mean is the logits, "class_maps", which are those of "local" once more.
        """
        local_maps = self.num_classes if self.local_maps is None else self.local_maps
        depth = len(self.widths) + (1 if self.head == "gap" else 2)
        deviations = tuple(self.deviations) * depth if len(self.deviations) == 1 else tuple(self.deviations)
        if len(self.pools) != len(self.widths) or len(deviations) != depth:
            raise ValueError(
                f"{len(self.widths)} widths want as many pools and 1 or {depth} deviations: {self.pools}, {deviations}"
            )
        if any(d != "he" and not float(d) >= 0 for d in deviations):
            raise ValueError(f"deviations must be 'he' or 0 or more: {self.deviations}")
        if min(local_maps, *self.widths) < 1:
            raise ValueError(f"widths and local_maps must be 1 or more: {self.widths}, {local_maps}")
        if self.head == "gap" and local_maps != self.num_classes:
            raise ValueError(
                f"local_maps={local_maps}: head 'gap' needs one map for each of {self.num_classes} classes"
            )

        maps: dict[str, jax.Array] = {}
        x = image.astype(self.dtype)
        for i, (width, pool) in enumerate(zip(self.widths, self.pools, strict=True), 1):
            x = nn.relu(Conv(width, 5, gaussian(deviations[i - 1]), self.dtype, name=f"conv{i}")(x))
            maps[f"conv{i}"] = x
            x = maps[f"pool{i}"] = POOLS[pool](exact(x), 0)
            if i <= 2:
                x = maps[f"norm{i}"] = response_normalisation(x)
        init = gaussian(deviations[len(self.widths)])
        x = maps["local"] = nn.relu(LocalConv(local_maps, kernel_init=init, dtype=self.dtype, name="local")(x))
        if self.head == "gap":
            return global_average_pool(x), maps | {"class_maps": x}
        x = x.reshape(x.shape[0], -1).astype(jnp.float32)
        if self.head == "fc_dropout":
            x = Dropout(0.5, "classic", name="dropout_fc")(x, train=train, example=example)
        return nn.Dense(self.num_classes, kernel_init=gaussian(deviations[-1]), name="fc")(x), maps
