"""Localisation for free: a network that was trained on labels alone says where, by its class maps (paper section 3.2).

The map of a class is computed densely, on the picture at several scales and on its mirror image, and averaged. Its largest
connected region above a share of its highest value becomes the box.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.ndimage
from PIL import Image

from nin_jax.data.pictures import to_picture

if TYPE_CHECKING:
    from nin_jax.training.predict import Predictor

FILLED = 32  # pixels
THRESHOLD = 0.4  # of the highest value of a map


def dense_maps(
    predictor: Predictor,
    image: np.ndarray,
    scales: Sequence[float] = (1.0,),
    flip: bool = True,
    classes: Sequence[int] | None = None,
) -> np.ndarray:
    """Class maps of a picture of any size, float32 `[H, W, K]`: the mean over scales and mirror images.

    Raises `UserError` for a network whose logits are not the averages of class maps, or that wants images of one size.

    Args:
      predictor: the network.
      image: uint8 `[H, W, C]`.
      scales: factors by which the picture is enlarged. A network finds things of the size of those it was trained on.
      flip: whether the mirror image is seen too.
      classes: indices of those that are wanted; None: all.
    """
    height, width = image.shape[:2]
    if predictor.info.image_shape[-1] == 1:
        image = np.round(image.mean(-1, keepdims=True)).astype(np.uint8)
    total = np.zeros((), np.float32)
    for factor in scales:
        size = max(1, round(width * factor)), max(1, round(height * factor))
        resized = to_picture(image).resize(size, Image.Resampling.BICUBIC)
        seen = np.asarray(resized).reshape(resized.height, resized.width, -1)
        for view in (seen, seen[:, ::-1])[: 1 + flip]:
            found = _maps(predictor, view)[..., slice(None) if classes is None else list(classes)]
            total = total + _enlarged(found if view is seen else found[:, ::-1], height, width)
    return total / (len(scales) * (1 + flip))


def _maps(predictor: Predictor, image: np.ndarray) -> np.ndarray:
    """Class maps `[h, w, K]` of an image, filled up with its mean to multiples of `FILLED`: few programs are compiled."""
    height, width = image.shape[:2]
    rows, columns = (-(-n // FILLED) * FILLED for n in (height, width))
    canvas = np.empty((rows, columns, image.shape[-1]), np.uint8)
    canvas[:] = image.mean((0, 1)).round()
    canvas[:height, :width] = image
    maps = predictor.class_maps(canvas[None])[0]
    return maps[: max(1, round(len(maps) * height / rows)), : max(1, round(maps.shape[1] * width / columns))]


def _enlarged(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    """Maps `[h, w, K]` as `[height, width, K]`, bilinear."""
    layers = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(maps[..., k])).resize((width, height), Image.Resampling.BILINEAR)
        )
        for k in range(maps.shape[-1])
    ]
    return np.stack(layers, axis=-1)


def box(evidence: np.ndarray, threshold: float = THRESHOLD) -> np.ndarray:
    """The box around the largest connected region of a map `[H, W]` at `threshold` of its range or more, float64 `[4]`.

    The whole picture where the map is the same everywhere.
    """
    low, high = float(evidence.min()), float(evidence.max())
    height, width = evidence.shape
    if not high > low:
        return np.array([0, 0, width, height], np.float64)
    labelled: Any = scipy.ndimage.label(evidence >= low + threshold * (high - low))
    regions, count = labelled
    sizes = np.bincount(regions.ravel(), minlength=count + 1)[1:]
    rows, columns = scipy.ndimage.find_objects(regions)[int(sizes.argmax())]
    return np.array([columns.start, rows.start, columns.stop, rows.stop], np.float64)


def point(evidence: np.ndarray) -> tuple[float, float]:
    """The middle of the pixel with the most evidence: x and y."""
    y, x = np.unravel_index(int(evidence.argmax()), evidence.shape)
    return float(x) + 0.5, float(y) + 0.5


def hits(at: tuple[float, float], boxes: np.ndarray) -> bool:
    """Whether a point lies in one of the boxes: the pointing game (Zhang et al. 2016), here without a margin."""
    x, y = at
    return bool(((boxes[:, 0] <= x) & (x < boxes[:, 2]) & (boxes[:, 1] <= y) & (y < boxes[:, 3])).any())
