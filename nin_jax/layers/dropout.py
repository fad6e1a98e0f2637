"""Dropout whose masks do not depend on how many devices share a batch."""

from __future__ import annotations

import functools
import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp


class Dropout(nn.Module):
    """Sets each element to 0 with probability `rate` while training, independently for every example.

    "classic" is the form of the paper's own code (cuda-convnet): x * mask in training, x * (1 - rate) in evaluation.
    "inverted" is the form of Caffe, PyTorch and Flax: x * mask / (1 - rate) in training, x in evaluation. They are the
    same network, but with a fixed initial deviation the scale of the training activations differs by 1 / (1 - rate).
    "unscaled" is how pylearn2's maxout network drops its input: x * mask in training, x in evaluation.

    The mask of an example is a function of (the "dropout" key, the layer's place in the model, the example's index in
    the global batch), so it does not depend on how many devices share the batch.

    Attributes:
      rate: probability of a zero, 0 <= rate < 1, to 1/65536.
      kind: "classic", "inverted" or "unscaled".
    """

    rate: float
    kind: Literal["classic", "inverted", "unscaled"] = "inverted"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, example: jax.Array | None = None) -> jax.Array:
        """Drops elements of `x [B, ...]`; `example` int32 `[B]` numbers the examples (default 0 to B - 1)."""
        keep = 1.0 - round(self.rate * 65536) / 65536
        if not 0 < keep <= 1:
            raise ValueError(f"dropout of {self.rate}: must be 0 or more, and less than 1")
        if not train:
            return x * jnp.asarray(keep, x.dtype) if self.kind == "classic" else x
        if keep == 1.0:
            return x
        bits = random_bits(self.make_rng("dropout"), x.shape, example)
        x = jnp.where(bits < round(keep * 65536), x, jnp.zeros((), x.dtype))
        return x / jnp.asarray(keep, x.dtype) if self.kind == "inverted" else x


def random_bits(key: jax.Array, shape: tuple[int, ...], example: jax.Array | None) -> jax.Array:
    """uint16 `[B, ...]`; those of an example are a function of the key and of its index in the global batch."""
    example = jnp.arange(shape[0]) if example is None else example
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(example)
    count = math.prod(shape[1:])

    def draw(key: jax.Array) -> jax.Array:
        # `split` gives all 64 bits that the generator makes of a number; `random.bits` gives 16 of them in the same time.
        # Drawn flat: XLA compiles that in a fifth of the time.
        words = jax.random.key_data(jax.random.split(key, -(-count // 4)))
        return jnp.concatenate([(words[:, i] >> s).astype(jnp.uint16) for i in (0, 1) for s in (0, 16)])[:count]

    return jax.vmap(draw)(keys).reshape(shape)
