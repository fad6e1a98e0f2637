"""The convolutional maxout network (Goodfellow et al. 2013), NIN's strongest rival: paper section 2 and tables 1 to 4."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nin_jax.layers import Conv, Dropout, max_pool, maxout, uniform
from nin_jax.models._stages import Maps


class Model(nn.Module):
    """Convolutional maxout layers, each with a max pool of stride 2, then a dense maxout layer and a softmax layer.

    Layers have pylearn2's names, h0, h1, ... and y, by which the optimiser's rules find them. The last axis of a kernel
    numbers the filters: all pieces of all maps. The pools have the grid of `layers.max_pool`, which rounds up and so
    gives the sizes of the original: 33 to 16, 15 to 7 and 9 to 5 on CIFAR.

    Attributes:
      num_classes: number of logits; 0: features in their place.
      widths: number of maps of each convolutional layer, after the maximum.
      pieces: number of affine maps that each of them is the maximum of.
      kernels: side of each layer's kernel.
      pads: rows and columns of zeros around each layer's input.
      pools: side of the window of each layer's max pool.
      dense_width: number of units of the dense maxout layer; 0 leaves it out.
      dense_pieces: number of affine units that each of them is the maximum of.
      limit: weights start from U(-limit, limit), biases from 0.
      input_dropout: probability of a zero in the image, without any rescaling ("unscaled", see `layers.Dropout`).
      dropout: probability of a zero in the input of every later layer, "inverted".
      dtype: what is computed in; parameters and logits are float32.
    """

    num_classes: int
    widths: Sequence[int] = (96, 192, 192)
    pieces: Sequence[int] = (2, 2, 2)
    kernels: Sequence[int] = (8, 8, 5)
    pads: Sequence[int] = (4, 3, 3)
    pools: Sequence[int] = (4, 4, 2)
    dense_width: int = 500
    dense_pieces: int = 5
    limit: float = 0.005
    input_dropout: float = 0.2
    dropout: float = 0.5
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        tables = self.widths, self.pieces, self.kernels, self.pads, self.pools
        if not self.widths or len({len(t) for t in tables}) > 1:
            raise ValueError(f"widths, pieces, kernels, pads and pools must have a number for each layer: {tables}")
        least = min(*self.widths, *self.pieces, *self.kernels, *self.pools, self.dense_pieces)
        if least < 1 or min(*self.pads, self.dense_width, self.limit) < 0:
            raise ValueError(f"widths, pieces, kernels and pools must be 1 or more, the rest 0 or more: {tables}")
        super().__post_init__()

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool, example: jax.Array | None = None) -> tuple[jax.Array, Maps]:
        """Logits and maps of images, see `nin_jax.models`."""

        def drop(x: jax.Array, layer: int) -> jax.Array:
            rate, kind = (self.input_dropout, "unscaled") if layer == 0 else (self.dropout, "inverted")
            return Dropout(rate, kind, name=f"dropout{layer}")(x, train=train, example=example)

        maps: Maps = {}
        x = image.astype(self.dtype)
        tables = self.widths, self.pieces, self.kernels, self.pads, self.pools
        for i, (width, pieces, size, pad, pool) in enumerate(zip(*tables, strict=True)):
            x = Conv(width * pieces, size, uniform(self.limit), self.dtype, pad, name=f"h{i}")(drop(x, i))
            x = maps[f"h{i}"] = maxout(x, pieces)
            x = maps[f"pool{i}"] = max_pool(x, pool, 2)
        depth = len(self.widths)
        x = x.reshape(x.shape[0], -1)
        if self.dense_width:
            units = self.dense_width * self.dense_pieces
            dense = nn.Dense(units, dtype=self.dtype, kernel_init=uniform(self.limit), name=f"h{depth}")
            x = maxout(dense(drop(x, depth)), self.dense_pieces)
            depth += 1
        if not self.num_classes:
            return x.astype(jnp.float32), maps
        y = nn.Dense(self.num_classes, kernel_init=uniform(self.limit), name="y")
        return y(drop(x, depth).astype(jnp.float32)), maps
