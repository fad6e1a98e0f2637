"""Features of regions, in two ways.

"warp": each region is warped to a network's input, and its maps are averaged over a few cells (R-CNN, Girshick et al. 2014).
"maps": the picture's maps are computed once, at several scales, and averaged over the cells of each region, at the scale at
which it is about as large as the network's input (He et al. 2014, arXiv 1406.4729, do so with maxima). That costs as much as
some tens of regions, however many there are.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from nin_jax.data import fitted
from nin_jax.data.objects.boxes import area
from nin_jax.errors import UserError, nearest

if TYPE_CHECKING:
    from nin_jax.training.predict import Predictor

REGIONS = 128  # in a batch
CANVAS = 32  # pictures are filled up to multiples of this many pixels, so that few programs are compiled
STEP = 1.5  # from a scale of a picture to the next
CONTEXT = 16 / 227  # R-CNN warps so that 16 of 227 pixels on each side lie outside the box
BASELINE_SIDE, CELL, ORIENTATIONS = 32, 8, 9  # of the features without a network


class Source(NamedTuple):
    """What features are taken from.

    Attributes:
      side, channels: of the images that regions are warped to.
      features: images uint8 `[B, side, side, channels]` -> float32 `[B, D]`, traced.
      maps: images uint8 `[B, H, W, channels]` of any size -> maps float32 `[B, h, w, C]`, traced; None if there are none.
      grid: cells, in height and width, over which `features` averages the maps.
    """

    side: int
    channels: int
    features: Any
    maps: Any = None
    grid: int = 0


def network(predictor: Predictor, name: str, grid: int) -> Source:
    """The averages of a network's map over `grid` x `grid` cells. Raises `UserError` for a map that it does not have."""
    height, width, channels = predictor.info.image_shape
    if height != width:
        raise UserError(f"the network's images are {height} x {width}; regions are warped to squares")

    def maps(images: jax.Array) -> jax.Array:
        prepared = fitted.apply(predictor.config.preprocess, predictor.stats, images)
        found: Any = predictor.model.apply(predictor.variables, prepared, train=False)[1]
        if name not in found:
            raise UserError(f"map {name!r}: {nearest(name, found)}")
        return found[name].astype(jnp.float32)

    jax.eval_shape(maps, jax.ShapeDtypeStruct((1, height, height, channels), jnp.uint8))
    any_size = all(getattr(op.entry, "ANY_SIZE", False) for op in predictor.config.preprocess)
    return Source(height, channels, lambda images: pooled(maps(images), grid), maps if any_size else None, grid)


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


def averaged(maps: jax.Array, boxes: jax.Array, grid: int) -> jax.Array:
    """Averages over the `grid` x `grid` cells of each box: maps `[H, W, C]`, boxes `[N, 4]` in their pixels -> `[N, D]`.

    A map is taken as constant over each of its pixels, so that cells may begin and end anywhere.
    """

    def shares(low: jax.Array, high: jax.Array, size: int) -> jax.Array:
        """How much of each cell lies in each row or column: `[N, grid, size]`, with a sum of 1."""
        edges = low[:, None] + (high - low)[:, None] * jnp.linspace(0, 1, grid + 1).reshape(1, -1)
        at = jnp.arange(size, dtype=jnp.float32).reshape(1, 1, -1)
        inside = jnp.minimum(edges[:, 1:, None], at + 1) - jnp.maximum(edges[:, :-1, None], at)
        inside = jnp.maximum(inside, 0)
        return inside / jnp.maximum(inside.sum(-1, keepdims=True), 1e-6)

    rows, columns = shares(boxes[:, 1], boxes[:, 3], maps.shape[0]), shares(boxes[:, 0], boxes[:, 2], maps.shape[1])
    return jnp.einsum("ngh,hwc,nkw->ngkc", rows, maps, columns, optimize="optimal").reshape(len(boxes), -1)


class Extractor:
    """Features of boxes of pictures, computed on the device, regions as the batch.

    Args:
      source: what computes them.
      finest: the largest scale of a picture whose maps are averaged; 0: regions are warped.
    """

    def __init__(self, source: Source, finest: float = 0.0):
        self.side, self.finest = source.side, finest

        def image(pixels: jax.Array) -> jax.Array:
            pixels = pixels.mean(-1, keepdims=True) if source.channels == 1 else pixels
            return jnp.clip(jnp.round(pixels), 0, 255).astype(jnp.uint8)

        def warped(canvas: jax.Array, mean: jax.Array, boxes: jax.Array) -> jax.Array:
            return source.features(image(warp(canvas, boxes, source.side) + mean.reshape(1, 1, 1, -1)))

        def of_maps(maps: jax.Array, boxes: jax.Array, height: int) -> jax.Array:
            return averaged(maps, boxes * (maps.shape[0] / height), source.grid)

        self._warped = jax.jit(warped)
        self._maps = jax.jit(lambda canvas, mean: source.maps(image(canvas + mean.reshape(1, 1, -1))[None])[0])
        self._of_maps = jax.jit(of_maps, static_argnums=2)

    def __call__(self, picture: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """float32 `[N, D]` of boxes float64 `[N, 4]` of a picture uint8 `[H, W, 3]`."""
        mean = picture.mean((0, 1), dtype=np.float64).astype(np.float32)
        # Warped regions shrink by 2 at least where they can: they keep their edges, and a large canvas is read for few.
        scales = _scales(boxes, self.side, self.finest) if self.finest else _scales(boxes, 2 * self.side, 1.0)
        found = None
        for scale in np.unique(scales):
            chosen = np.flatnonzero(scales == scale)
            canvas, factor = _canvas(picture, mean, float(scale))
            seen = np.resize(boxes[chosen] * factor, (-(-len(chosen) // REGIONS) * REGIONS, 4)).astype(np.float32)
            on_device = jax.device_put(canvas), jax.device_put(mean)
            if self.finest:
                maps = self._maps(*on_device)
                parts = [self._of_maps(maps, seen[i : i + REGIONS], len(canvas)) for i in range(0, len(seen), REGIONS)]
            else:
                parts = [self._warped(*on_device, seen[i : i + REGIONS]) for i in range(0, len(seen), REGIONS)]
            part = np.concatenate([np.asarray(p) for p in parts])[: len(chosen)]
            found = np.zeros((len(boxes), part.shape[1]), np.float32) if found is None else found
            found[chosen] = part
        assert found is not None
        return found


def _scales(boxes: np.ndarray, side: int, most: float) -> np.ndarray:
    """The power of `STEP` at which each box is about as large as an image of `side` pixels, `most` or less: float64 `[N]`."""
    wanted = side / np.sqrt(np.maximum(area(boxes), 1e-6))
    return STEP ** np.minimum(np.round(np.log(wanted) / np.log(STEP)), np.floor(np.log(most) / np.log(STEP) + 1e-9))


def _canvas(picture: np.ndarray, mean: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """A picture at a scale minus its mean, filled up with zeros, float32; and what boxes `[4]` are multiplied by."""
    size = [max(1, round(n * scale)) for n in (picture.shape[1], picture.shape[0])]
    seen = picture if scale == 1 else np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))
    height, width = (-(-n // CANVAS) * CANVAS for n in seen.shape[:2])
    canvas = np.zeros((height, width, 3), np.float32)
    canvas[: seen.shape[0], : seen.shape[1]] = seen - mean
    return canvas, np.tile(np.array(size) / picture.shape[1::-1], 2)
