"""Features of regions (R-CNN, Girshick et al. 2014): each is warped to a network's input, and its maps are pooled.

The features of several networks are put behind one another, as the slides of 2014 do with three.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nin_jax.data import fitted
from nin_jax.errors import UserError, nearest

if TYPE_CHECKING:
    from nin_jax.training.predict import Predictor

REGIONS = 128  # in a batch
CANVAS = 128  # pictures are filled up to multiples of this many pixels, so that few programs are compiled
CONTEXT = 16 / 227  # R-CNN warps so that 16 of 227 pixels on each side lie outside the box
BASELINE_SIDE, CELL, ORIENTATIONS = 32, 8, 9  # of the features without a network


class Source(NamedTuple):
    """What features are taken from.

    Attributes:
      side, channels: of the images that regions are warped to.
      features: images uint8 `[B, side, side, channels]` -> float32 `[B, D]`, traced.
    """

    side: int
    channels: int
    features: Any


def network(predictor: Predictor, name: str, grid: int) -> Source:
    """The averages of a network's map over `grid` x `grid` cells. Raises `UserError` for a map that it does not have."""
    height, width, channels = predictor.info.image_shape
    if height != width:
        raise UserError(f"the network's images are {height} x {width}; regions are warped to squares")

    def features(images: jax.Array) -> jax.Array:
        prepared = fitted.apply(predictor.config.preprocess, predictor.stats, images)
        maps: Any = predictor.model.apply(predictor.variables, prepared, train=False)[1]
        if name not in maps:
            raise UserError(f"map {name!r}: {nearest(name, maps)}")
        return pooled(maps[name].astype(jnp.float32), grid)

    source = Source(height, channels, features)
    jax.eval_shape(features, jax.ShapeDtypeStruct((1, height, height, channels), jnp.uint8))
    return source


def colour(grid: int) -> Source:
    """A baseline: the mean colours of `grid` x `grid` cells."""
    return Source(BASELINE_SIDE, 3, lambda images: pooled(images.astype(jnp.float32) / 255, grid))


def hog() -> Source:
    """A baseline: histograms of oriented gradients (Dalal and Triggs 2005), in their usual form.

    Gradients of the grey picture by (-1, 0, 1); cells of 8 x 8 pixels with 9 unsigned orientations, to which a gradient
    gives its length, shared between the two nearest; blocks of 2 x 2 cells, each scaled to length 1, cut at 0.2, scaled
    again.
    """

    def features(images: jax.Array) -> jax.Array:
        grey = images.astype(jnp.float32).mean(-1) / 255
        padded = jnp.pad(grey, ((0, 0), (1, 1), (1, 1)), mode="edge")
        dy, dx = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1], padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
        length, angle = jnp.hypot(dx, dy), (jnp.arctan2(dy, dx) / jnp.pi * ORIENTATIONS) % ORIENTATIONS
        centres = jnp.arange(ORIENTATIONS, dtype=jnp.float32).reshape(1, 1, 1, -1)
        off = jnp.abs(angle[..., None] - centres)
        share = jnp.maximum(0, 1 - jnp.minimum(off, ORIENTATIONS - off))  # 180 degrees are 0 degrees
        votes = length[..., None] * share
        count, cells = len(grey), BASELINE_SIDE // CELL
        cell = votes.reshape(count, cells, CELL, cells, CELL, ORIENTATIONS).sum((2, 4))
        block = jnp.concatenate([cell[:, :-1, :-1], cell[:, :-1, 1:], cell[:, 1:, :-1], cell[:, 1:, 1:]], axis=-1)
        block = jnp.minimum(block / (jnp.linalg.norm(block, axis=-1, keepdims=True) + 1e-6), 0.2)
        return (block / (jnp.linalg.norm(block, axis=-1, keepdims=True) + 1e-6)).reshape(count, -1)

    return Source(BASELINE_SIDE, 3, features)


def pooled(maps: jax.Array, grid: int) -> jax.Array:
    """Averages over `grid` x `grid` cells, as equal as whole pixels allow: `[B, H, W, C]` -> `[B, grid * grid * C]`."""
    rows, columns = (np.linspace(0, size, grid + 1).round().astype(int) for size in maps.shape[1:3])
    cells = [
        maps[:, top:bottom, left:right].mean((1, 2))
        for top, bottom in itertools.pairwise(rows)
        for left, right in itertools.pairwise(columns)
    ]
    return jnp.concatenate(cells, axis=-1)


def warp(canvas: jax.Array, boxes: jax.Array, side: int, context: float = CONTEXT) -> jax.Array:
    """Regions of a picture as images of side x side, uint8 `[N, side, side, C]`: linear, with smoothing where they shrink.

    Args:
      canvas: float32 `[H, W, C]`, the picture minus its mean, so that what lies outside is the mean; see `Extractor`.
      boxes: float32 `[N, 4]`.
      side: of the images.
      context: the share of an image, on each side, that lies around its box.
    """
    larger = 1 / (1 - 2 * context)

    def one(box: jax.Array) -> jax.Array:
        centre, size = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) * larger
        scale = side / size[::-1]  # rows first
        translation = -(centre - size / 2)[::-1] * scale
        shape = (side, side, canvas.shape[-1])
        return jax.image.scale_and_translate(canvas, shape, (0, 1), scale, translation, "linear", antialias=True)

    return jax.vmap(one)(boxes)


class Extractor:
    """Features of boxes of pictures, computed on the device, regions as the batch.

    Args:
      sources: whose features are put behind one another.

    Attributes:
      length: numbers of a region.
    """

    def __init__(self, sources: Sequence[Source]):
        self.sources = tuple(sources)

        def features(canvas: jax.Array, mean: jax.Array, boxes: jax.Array) -> jax.Array:
            parts = []
            for source in self.sources:
                seen = warp(canvas, boxes, source.side) + mean.reshape(1, 1, 1, -1)
                if source.channels == 1:
                    seen = seen.mean(-1, keepdims=True)
                parts.append(source.features(jnp.clip(jnp.round(seen), 0, 255).astype(jnp.uint8)))
            return jnp.concatenate(parts, axis=-1)

        self._features = jax.jit(features)
        shapes = ((CANVAS, CANVAS, 3), (3,), (1, 4))
        self.length = jax.eval_shape(features, *(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)).shape[-1]

    def __call__(self, picture: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """float32 `[N, D]` of boxes float64 `[N, 4]` of a picture uint8 `[H, W, 3]`."""
        height, width = (-(-size // CANVAS) * CANVAS for size in picture.shape[:2])
        mean = picture.mean((0, 1), dtype=np.float64).astype(np.float32)
        canvas = np.zeros((height, width, 3), np.float32)
        canvas[: picture.shape[0], : picture.shape[1]] = picture - mean
        padded = np.resize(boxes, (-(-len(boxes) // REGIONS) * REGIONS, 4)).astype(np.float32)
        on_device = jax.device_put(canvas), jax.device_put(mean)
        parts = [self._features(*on_device, padded[i : i + REGIONS]) for i in range(0, len(padded), REGIONS)]
        return np.concatenate([np.asarray(part) for part in parts])[: len(boxes)]
