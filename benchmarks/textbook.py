"""A network of the zoo as a user of Flax would write it first: nn.Conv, nn.max_pool, nn.Dropout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nin_jax.errors import UserError
from nin_jax.models import _stages as stages


class Textbook(nn.Module):
    """The stages of a network whose class maps are averaged; parameters have the names of ours.

    Attributes:
      plan: the stages, with names.
      dtype: what is computed in; parameters and logits are float32.
    """

    plan: Sequence[stages.Named]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, example: Any = None) -> tuple[jax.Array, dict[str, jax.Array]]:
        """float32 logits `[B, K]` of images `[B, H, W, C]`; no maps. `example` is not used."""
        for stage, _, names in self.plan:
            if isinstance(stage, stages.MLPConv):
                pad = stage.size // 2 if stage.pad is None else stage.pad
                first: Any = {"strides": stage.stride, "padding": pad, "feature_group_count": stage.groups}
                for i, (name, maps) in enumerate(zip(names, stage.maps, strict=True)):
                    size = 1 if i else stage.size
                    x = nn.Conv(maps, (size, size), name=name, dtype=self.dtype, **({} if i else first))(x)
                    x = nn.relu(x) if i < len(names) - 1 or stage.relu else x
            elif isinstance(stage, stages.MaxPool):
                after = [-(size - stage.start - stage.size) % stage.stride for size in x.shape[1:3]]
                pool = nn.avg_pool if isinstance(stage, stages.AvgPool) else nn.max_pool
                padding: Any = [(-stage.start, n) for n in after]
                x = pool(x, (stage.size, stage.size), (stage.stride, stage.stride), padding)
            elif isinstance(stage, stages.Dropout):
                x = nn.Dropout(stage.rate, deterministic=not train)(x)
        return jnp.mean(x, (1, 2)).astype(jnp.float32), {}


def textbook(model: nn.Module) -> Textbook:
    """The textbook's form of a model. Raises `UserError` where it has more than convolutions, pools, dropout and an average."""
    kinds = stages.MLPConv, stages.MaxPool, stages.Dropout
    if not (
        isinstance(model, stages.Network)
        and model.head == "gap"
        and not model.batch_norm
        and all(isinstance(stage, kinds) for stage in model.stages())
    ):
        raise UserError(
            "--textbook: only of a network of convolutions, pools and dropout with head='gap', without batch_norm"
        )
    return Textbook(tuple(stages.named(model.stages())), model.dtype)
