"""Hypotheses - CNN - Pooling (Wei et al. 2014, "CNN: Single-label to Multi-label"): several labels for a picture."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nin_jax import registry
from nin_jax.errors import UserError
from nin_jax.layers.mlpconv import Maps


class Model(nn.Module):
    """A network of the zoo that looks at every hypothesis of a picture; the largest logit of each class is the picture's.

        logits[b, k] = max over hypotheses h of network(image of h)[b, k]

    (cross-hypothesis max pooling, section 3.2). An image `[M * S, S, C]` is a bag of M hypotheses, one below the other; with
    M = 1 this is the network itself. Its variables are those of the network, so that one takes the weights of the
    other. The maps of the hypotheses lie one below the other too; class maps are given for M = 1 alone.

    Attributes:
      num_classes, dtype, axis_name: as of the network.
      network: its name and arguments, as a call: "nin(batch_norm=True)".
    """

    num_classes: int
    network: str = "nin"
    dtype: Any = jnp.float32
    axis_name: str | None = None

    def setup(self) -> None:
        name, arguments = registry.zoo_call("models", self.network)
        if name == "hcp":
            raise UserError("model hcp: network='hcp': must be another model of the zoo")
        known = getattr(registry.find("models", name).Model, "__dataclass_fields__", {})
        shared = {key: getattr(self, key) for key in ("dtype", "axis_name") if key in known}
        self.shared = registry.create(name, self.num_classes, **arguments, **shared)
        nn.share_scope(self, self.shared)

    def __call__(self, image: jax.Array, *, train: bool, example: jax.Array | None = None) -> tuple[jax.Array, Maps]:
        """Logits and maps of bags, see `nin_jax.models`."""
        batch, height, size, channels = image.shape
        count = height // size
        if count * size != height:
            raise ValueError(f"images of {height} x {size} are no bags of squares, one below the other")
        if count == 1:
            return self.shared(image, train=train, example=example)
        if example is not None:
            example = (example[:, None] * count + jnp.arange(count)[None]).ravel()
        each, found = self.shared(image.reshape(-1, size, size, channels), train=train, example=example)
        maps = {name: m.reshape(batch, -1, *m.shape[2:]) for name, m in found.items() if name != "class_maps"}
        return each.reshape(batch, count, -1).max(1), maps
