"""The network of stochastic pooling (Zeiler and Fergus 2013), a rival in tables 1 to 4 of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nin_jax.layers import Conv, StochasticPool, gaussian, response_normalisation
from nin_jax.models._stages import Maps, classify, per_layer


class Model(nn.Module):
    """5x5 convolutions with ReLU, each with a stochastic 3x3 pool of stride 2 and response normalisation; a softmax layer.

    Attributes:
      num_classes: number of logits; 0: features in their place.
      widths: number of maps of each convolution.
      deviations: initial standard deviation of the weights ("he": sqrt(2 / fan-in)): of each convolution and of the
        softmax layer, or one for all. Biases start at 0.
      dtype: what is computed in; parameters and logits are float32.
    """

    num_classes: int
    widths: Sequence[int] = (64, 64, 64)
    deviations: Sequence[float | str] = ("he",)
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        if min(self.widths, default=0) < 1:
            raise ValueError(f"widths must be 1 or more: {self.widths}")
        per_layer(self.deviations, len(self.widths) + 1)
        super().__post_init__()

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool, example: jax.Array | None = None) -> tuple[jax.Array, Maps]:
        """Logits and maps of images, see `nin_jax.models`.

        Pools draw in training and take the expectation otherwise.
        """
        maps: Maps = {}
        deviations = per_layer(self.deviations, len(self.widths) + 1)
        x = image.astype(self.dtype)
        for i, width in enumerate(self.widths, 1):
            x = nn.relu(Conv(width, 5, gaussian(deviations[i - 1]), self.dtype, name=f"conv{i}")(x))
            maps[f"conv{i}"] = x
            x = maps[f"pool{i}"] = StochasticPool(name=f"pool{i}")(x, train=train, example=example)
            x = maps[f"norm{i}"] = response_normalisation(x)
        return classify("fc", x, self.num_classes, deviations[-1]), maps
