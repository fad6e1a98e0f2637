"""Scenes: pictures composed of objects of a classification data set on textured ground, with boxes: a task of any size.

Object k of scene i, its place, size and background are functions of the seed and i alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

from nin_jax.data.pictures import to_picture


class Scene(NamedTuple):
    """A composed picture.

    Attributes:
      image: uint8 `[S, S, C]`.
      boxes: float64 `[N, 4]`, see `boxes`.
      labels: int32 `[N]`.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


def scene(
    images: np.ndarray,
    labels: np.ndarray,
    number: int,
    *,
    seed: int = 0,
    side: int = 96,
    objects: tuple[int, int] = (1, 3),
    scale: tuple[float, float] = (0.75, 1.5),
) -> Scene:
    """Scene `number` of a seed: some images of a data set, scaled, side by side on a ground, none over another.

    The ground is a texture of the data set's own: an image, enlarged, turned and with its blocks of pixels shuffled, so that
    it has real colours and edges, but nothing that can be recognised. Objects that find no free place are left out.

    Args:
      images, labels: uint8 `[N, H, W, C]` and int32 `[N]`.
      number: of the scene.
      side: height and width of the scene.
      objects: the fewest and the most.
      scale: the smallest and the largest size of an object, in sizes of an image.
    """
    random = np.random.default_rng((seed, number))
    canvas = _ground(images[random.integers(len(images))], side, random)
    boxes: list[tuple[int, int, int, int]] = []
    kinds: list[int] = []
    for _ in range(random.integers(objects[0], objects[1] + 1)):
        chosen = int(random.integers(len(images)))
        size = round(images.shape[1] * random.uniform(*scale))
        for _ in range(20):
            x, y = (int(v) for v in random.integers(0, side - size + 1, 2))
            if all(x >= b[2] or y >= b[3] or x + size <= b[0] or y + size <= b[1] for b in boxes):
                scaled = to_picture(images[chosen]).resize((size, size), Image.Resampling.BICUBIC)
                canvas[y : y + size, x : x + size] = np.asarray(scaled).reshape(size, size, -1)
                boxes.append((x, y, x + size, y + size))
                kinds.append(int(labels[chosen]))
                break
    return Scene(canvas, np.array(boxes, np.float64).reshape(-1, 4), np.array(kinds, np.int32))


def _ground(image: np.ndarray, side: int, random: np.random.Generator, block: int = 4) -> np.ndarray:
    """A texture `[side, side, C]` of an image's blocks of `block` x `block` pixels, each drawn and turned at random."""
    height, width, channels = image.shape
    rows, columns = height // block, width // block
    blocks = image[: rows * block, : columns * block].reshape(rows, block, columns, block, channels)
    blocks = blocks.transpose(0, 2, 1, 3, 4).reshape(-1, block, block, channels)
    count = -(-side // block)
    drawn = blocks[random.integers(len(blocks), size=count * count)]
    flipped = np.where(random.random(len(drawn))[:, None, None, None] < 0.5, drawn, drawn[:, ::-1, ::-1])
    texture = flipped.reshape(count, count, block, block, channels).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(texture.reshape(count * block, count * block, channels)[:side, :side])
