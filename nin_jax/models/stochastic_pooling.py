"""The network of stochastic pooling (Zeiler and Fergus 2013), a rival in tables 1 to 4 of the paper."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from nin_jax.layers import Conv, StochasticPool, gaussian, response_normalisation


class Model(nn.Module):
    """5x5 convolutions with ReLU, each with a stochastic 3x3 pool of stride 2 and response normalisation; a softmax layer.

    Attributes:
      num_classes: number of logits.
      widths: number of maps of each convolution.
      deviations: initial standard deviation of the weights ("he": sqrt(2 / fan-in)): of each convolution and of the
        softmax layer, or one for all. Biases start at 0.
      dtype: what is computed in; parameters and logits are float32.
    """

    num_classes: int
    widths: Sequence[int] = (64, 64, 64)
    deviations: Sequence[float | str] = ("he",)
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, image: jax.Array, *, train: bool, example: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Classifies images.

        Args:
          image: `[B, H, W, C]`, float32 or bfloat16.
          train: whether the pools draw; they then need the rng "dropout". In the test they take the expected mean.
          example: int32 `[B]`, index of each image in the global batch, which the draws are keyed by. Default 0 to B - 1.

        Returns:
          float32 logits `[B, num_classes]`, and the maps `[B, H', W', C']` "conv1", "pool1", "norm1", "conv2", ...
          There are no class maps.
        """
        depth = len(self.widths) + 1
        deviations = tuple(self.deviations) * depth if len(self.deviations) == 1 else tuple(self.deviations)
        if len(deviations) != depth or any(d != "he" and not float(d) >= 0 for d in deviations):
            raise ValueError(f"deviations must be 1 or {depth} of 'he' and numbers from 0: {self.deviations}")
        if min(self.widths, default=0) < 1:
            raise ValueError(f"widths must be 1 or more: {self.widths}")

        maps: dict[str, jax.Array] = {}
        x = image.astype(self.dtype)
        for i, width in enumerate(self.widths, 1):
            x = nn.relu(Conv(width, 5, gaussian(deviations[i - 1]), self.dtype, name=f"conv{i}")(x))
            maps[f"conv{i}"] = x
            x = maps[f"pool{i}"] = StochasticPool(name=f"pool{i}")(x, train=train, example=example)
            x = maps[f"norm{i}"] = response_normalisation(x)
        x = x.reshape(x.shape[0], -1).astype(jnp.float32)
        return nn.Dense(self.num_classes, kernel_init=gaussian(deviations[-1]), name="fc")(x), maps
