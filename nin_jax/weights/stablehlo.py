"""StableHLO: the network as a program of XLA, for any batch size and for CPUs, NVIDIA GPUs and TPUs, without its code.

    network = jax.export.deserialize(pathlib.Path("nin.stablehlo").read_bytes())
    logits = network.call(images)["logits"]

JAX promises to read such a file for six months only (its `jax.export` documentation): keep the weights too.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax

from nin_jax.weights.network import Network, tracing

PLATFORMS = "cpu", "cuda", "tpu"


def to_exported(network: Network, maps: Sequence[str] = (), *, weights: bool = True) -> jax.export.Exported:
    """The network as `call(images) -> {"logits": float32 [B, K], ...}`, or without `weights` as `call(numbers, images)`.

    `numbers` is `network.folded().numbers`, or such a tree of other weights. Batch normalisation is folded into the weights.
    """
    network = network.folded()
    apply: Any = functools.partial(network, maps=tuple(maps))
    (batch,) = jax.export.symbolic_shape("batch")
    images = network.images(batch)
    with tracing():
        if weights:
            return jax.export.export(jax.jit(lambda images: apply(network.numbers, images)), platforms=PLATFORMS)(
                images
            )
        numbers = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), network.numbers)
        return jax.export.export(jax.jit(apply), platforms=PLATFORMS)(numbers, images)


def to_bytes(network: Network, maps: Sequence[str] = ()) -> bytes:
    """The file, with the weights inside."""
    return bytes(to_exported(network, maps).serialize())
