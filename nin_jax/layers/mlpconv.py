"""The paper's layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from nin_jax.layers.conv import Conv
from nin_jax.layers.initialisers import Initializer
from nin_jax.layers.normalisation import BatchNorm

Maps = dict[str, jax.Array]


class Layer(NamedTuple):
    """One layer of the perceptron.

    Attributes:
      name: such as "conv1" or "cccp1".
      features: number of output channels.
      init: initializer of the weights.
      bias: initial value of the biases; None: batch normalisation instead of a bias.
      relu: whether it ends in a ReLU.
    """

    name: str
    features: int
    init: Initializer
    bias: float | None = 0.0
    relu: bool = True


class MLPConv(nn.Module):
    """The paper's mlpconv layer (equation 2): a perceptron slid over the input like a convolution.

        f_1 = max(W_1 * x + b_1, 0),   f_2 = max(W_2 f_1 + b_2, 0),   ...,   f_n = max(W_n f_(n-1) + b_n, 0)

    W_1 is size x size, the others 1x1 (position by position).

    Attributes:
      layers: f_1 to f_n.
      size: side of the kernels of W_1.
      stride: of W_1, as `pad` and `groups`; see `Conv`.
      pad: see `stride`.
      groups: see `stride`.
      dtype: what is computed in; parameters and normalisation are float32.
      axis_name: mapped axis whose replicas share the batch-norm statistics; None: each has its own.
    """

    layers: Sequence[Layer]
    size: int = 1
    stride: int = 1
    pad: int | None = None
    groups: int = 1
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> Maps:
        """Maps `[B, H, W, C]` to the output `[B, H', W', features]` of every layer, by name."""
        maps: Maps = {}
        for i, (name, features, init, bias, relu) in enumerate(self.layers):
            window = (self.size, self.stride, self.pad, self.groups) if i == 0 else (1, 1, None, 1)
            size, stride, pad, groups = window
            x = Conv(features, size, init, self.dtype, pad, bias, stride, groups, name=name)(x)
            if bias is None:
                x = BatchNorm(axis_name=self.axis_name, name=f"{name}_norm")(x, train=train)
            x = maps[name] = nn.relu(x) if relu else x
        return maps
