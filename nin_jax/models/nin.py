"""Network In Network (paper section 3, figure 2): mlpconv layers, pools between them, global average pooling on top."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from nin_jax.layers import Dropout, MLPConv, gaussian, global_average_pool


class Model(nn.Module):
    """A stack of mlpconv layers; the last one has a map for each class, whose mean is that class's logit.

    Layers are named as in the authors' release: conv1, cccp1, cccp2, conv2, cccp3, ... All but the last mlpconv are
    followed by a 3x3 pool of stride 2 and by dropout.

    Attributes:
      num_classes: number of class maps, so of logits.
      kernels: side of each mlpconv's first kernel, such as (5, 5, 3).
      widths: number of maps of each mlpconv's layers, such as ((192, 160, 96), (192, 192, 192), (192, 192)). The
        class maps, a last 1x1 layer of `num_classes` maps in the last mlpconv, come on top and are not listed.
      pools: after each mlpconv but the last "max", "avg" or, as some ports have it, "avg_padded", which divides by 9 at
        the edges too.
      pool_start: where the first window of a pool starts: 0, as in both releases, or -1, as in most ports to PyTorch
        (`padding=1`).
      deviations: initial standard deviation of the weights ("he": sqrt(2 / fan-in)), one for each layer or one for all.
      dropout: probability of a zero after each pool.
      dropout_kind: "classic" or "inverted", see `layers.Dropout`.
      relu_on_class_maps: the paper's equation 2 and both releases rectify the class maps too.
      class_map_bias: what the biases of the class maps start at, 0 in both releases. The same number for all classes
        changes no probability, and one above 0 keeps the maps from starting in the flat part of their ReLU.
      batch_norm: normalises every layer but the class maps before its ReLU, in place of its bias; not in the paper.
      head: what turns the class maps into logits: "gap" (the paper's), or "fc", a fully connected layer on the class
        maps (Table 5), or "fc_dropout", the same after dropout of 0.5. Its weights start as those of the last layer.
      dtype: what is computed in; parameters and logits are float32.
    """

    num_classes: int
    kernels: Sequence[int] = (5, 5, 3)
    widths: Sequence[Sequence[int]] = ((192, 160, 96), (192, 192, 192), (192, 192))
    pools: Sequence[Literal["max", "avg", "avg_padded"]] = ("max", "max")
    pool_start: Literal[0, -1] = 0
    deviations: Sequence[float | str] = (0.05,)
    dropout: float = 0.5
    dropout_kind: Literal["classic", "inverted"] = "classic"
    relu_on_class_maps: bool = True
    class_map_bias: float = 0.0
    batch_norm: bool = False
    head: Literal["gap", "fc", "fc_dropout"] = "gap"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, image: jax.Array, *, train: bool, example: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Classifies images.

        Args:
          image: `[B, H, W, C]`, float32 or bfloat16, any H and W that the pools leave at least one position of.
          train: whether dropout is on; it then needs the rng "dropout".
          example: int32 `[B]`, index of each image in the global batch, which dropout is keyed by. Default 0 to B - 1.

        Returns:
          float32 logits `[B, num_classes]`, and every named map `[B, H', W', C']`: each layer's output, "pool1", ...,
          and "class_maps" (the last layer's output once more, under the name that all models of the zoo share).
        """
        if not self.widths:
            raise ValueError("widths must name at least one mlpconv")
        widths = [*self.widths[:-1], (*self.widths[-1], self.num_classes)]
        depth = sum(len(w) for w in widths)
        deviations = tuple(self.deviations) * depth if len(self.deviations) == 1 else tuple(self.deviations)
        if not len(self.kernels) == len(widths) == len(self.pools) + 1:
            raise ValueError(
                f"{len(widths)} widths want as many kernels and one pool less: {self.kernels}, {self.pools}"
            )
        if len(deviations) != depth:
            raise ValueError(f"deviations: {len(deviations)} numbers for {depth} layers; give 1 or {depth}")

        if any(k < 1 or k % 2 == 0 for k in self.kernels) or any(w < 1 for width in widths for w in width):
            raise ValueError(f"kernels must be odd and widths 1 or more: {self.kernels}, {self.widths}")
        if any(d != "he" and not float(d) >= 0 for d in deviations):
            raise ValueError(f"deviations must be 'he' or 0 or more: {self.deviations}")

        maps: dict[str, jax.Array] = {}
        x = image.astype(self.dtype)
        layer = cccp = 0
        for block, (size, width) in enumerate(zip(self.kernels, widths, strict=True), 1):
            last = block == len(widths)
            names = [f"conv{block}", *(f"cccp{cccp + i}" for i in range(1, len(width)))]
            relu_last = self.relu_on_class_maps or not last
            mlpconv = MLPConv(
                names,
                width,
                size,
                deviations[layer : layer + len(width)],
                relu_last,
                bias_last=self.class_map_bias if last else 0.0,
                batch_norm=self.batch_norm,
                norm_last=not last,
                dtype=self.dtype,
                pool="" if last else self.pools[block - 1],
                pool_start=self.pool_start,
                name=f"mlpconv{block}",
            )
            outputs = mlpconv(x, train=train)
            maps |= {name: outputs[name] for name in names}
            x = outputs[names[-1]]
            layer, cccp = layer + len(width), cccp + len(width) - 1
            if not last:
                x = maps[f"pool{block}"] = outputs["pool"]
                x = Dropout(self.dropout, self.dropout_kind, name=f"dropout{block}")(x, train=train, example=example)
        maps["class_maps"] = x
        if self.head == "gap":
            return global_average_pool(x), maps
        x = x.reshape(x.shape[0], -1).astype(jnp.float32)
        if self.head == "fc_dropout":
            x = Dropout(0.5, self.dropout_kind, name="dropout_fc")(x, train=train, example=example)
        return nn.Dense(self.num_classes, kernel_init=gaussian(deviations[-1]), name="fc")(x), maps
