"""Evaluates large maps a few images at a time, so that they stay in the processor's cache."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from nin_jax.layers.conv import by_platform, portable
from nin_jax.layers.cpu import tuning
from nin_jax.layers.cpu.products import as_float32
from nin_jax.layers.mlpconv import Maps, MLPConv


def in_pieces(mlpconv: MLPConv, pool: Callable[[jax.Array], jax.Array], x: jax.Array) -> tuple[Maps, jax.Array]:
    """`maps = mlpconv(x)`, and `pool` of the last of them, in evaluation; on a CPU a few images at a time if maps are
    large.

    The convolution theorem needs many images: a first layer that it computes sees all of them at once.
    """
    if portable.value or mlpconv.scope is None or mlpconv.scope.mutable:  # Flax wants to see each layer
        maps = mlpconv(x)
        return maps, pool(maps[mlpconv.layers[-1].name])
    layer, variables = mlpconv.unbind()
    first: Any = {}
    if x.shape[-1] * layer.stride**2 >= tuning.THEOREM_CHANNELS:
        first = layer.clone(layers=layer.layers[:1]).apply(variables, x)
        x = first[layer.layers[0].name]
        layer = layer.clone(layers=layer.layers[1:], size=1, stride=1, pad=None, groups=1)

    def rest(x: jax.Array, pool: Callable[[jax.Array], jax.Array] = pool) -> tuple[Maps, jax.Array]:
        maps: Any = layer.apply(variables, x)
        return maps, pool(maps[layer.layers[-1].name] if maps else x)

    positions = math.prod(x.shape[1:3])
    largest = 4 * len(x) * positions * max(row.features for row in mlpconv.layers)
    least, most = tuning.PIECE_POSITIONS
    piece = max((n for n in range(1, most // positions + 1) if len(x) % n == 0), default=0)
    if piece * positions < least or largest <= tuning.PIECES_FROM_BYTES:
        maps, pooled = rest(x)
        return first | maps, pooled

    def by_pieces(x: jax.Array) -> tuple[Maps, jax.Array]:
        # Pooled maps are rounded to bfloat16 after the loop: in it, jax 0.10 would take as long for that as for the pool.
        y = lax.map(lambda x: rest(x, lambda top: pool(as_float32(top))), x.reshape(-1, piece, *x.shape[1:]))
        maps, pooled = jax.tree.map(lambda m: m.reshape(-1, *m.shape[2:]), y)
        return maps, pooled.astype(mlpconv.dtype)

    maps, pooled = by_platform(x, cpu=by_pieces, default=rest)
    return first | maps, pooled
