"""A network as the list of its feature maps, for what is built on top of them."""

from __future__ import annotations

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp


class Level(NamedTuple):
    """A feature map `[B, h, w, channels]` by its name; H / h and W / w are about `reduction`, a power of two."""

    name: str
    channels: int
    reduction: int


class Features(nn.Module):
    """The last feature map of each size, the largest first, as a list. Its variables are those of the network.

    Attributes:
      network: a model of the zoo, made with `num_classes=0`.
      levels: the maps.
    """

    network: nn.Module
    levels: tuple[Level, ...]

    def setup(self) -> None:
        nn.share_scope(self, self.network)

    def __call__(self, image: jax.Array, *, train: bool, example: jax.Array | None = None) -> list[jax.Array]:
        """Feature maps of images, see `nin_jax.models`."""
        _, maps = self.network(image, train=train, example=example)
        return [maps[level.name] for level in self.levels]


def levels(network: nn.Module, image_shape: tuple[int, int, int]) -> tuple[Level, ...]:
    """The last map of each size that a network makes of an image `[H, W, C]`, the largest first."""
    shapes: dict[str, tuple[int, ...]] = {}

    def trace() -> None:
        (_, maps), _ = network.init_with_output(jax.random.key(0), jnp.zeros((1, *image_shape)), train=False)
        shapes.update({name: m.shape for name, m in maps.items()})  # in the order in which they are made

    jax.eval_shape(trace)
    last = {
        shape[1:3]: Level(name, shape[3], 2 ** round(math.log2(image_shape[0] / shape[1])))
        for name, shape in shapes.items()
    }
    return tuple(last[size] for size in sorted(last, reverse=True))
