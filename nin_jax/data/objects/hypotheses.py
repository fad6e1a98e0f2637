"""The hypotheses of HCP (Wei et al. 2014, section 3.1): a few proposals that cover a picture, and the images of them.

A bag is the images of a picture's hypotheses, one below the other, in the order of their clusters.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from PIL import Image

from nin_jax.data.objects import proposals
from nin_jax.data.objects.boxes import area, iou
from nin_jax.data.pictures import to_picture
from nin_jax.errors import UserError
from nin_jax.storage import expanded

ELONGATED = 4.0  # a longer side in shorter ones: hypotheses above it are dropped
CONNECTED = 1e-4  # affinity of boxes without overlap: a graph of several parts has no normalised cut


def choose(boxes: np.ndarray, clusters: int, each: int, *, ranked: bool, smallest: float = 900.0) -> np.ndarray:
    """`each` hypotheses of each of `clusters` clusters, float64 `[clusters * each, 4]`; the same at every call.

    Boxes of less than `smallest` pixels squared and elongated ones are dropped. The rest is cut into clusters by
    normalised cut, boxes being as near as their intersection over union. Clusters of fewer boxes repeat them.

    Args:
      boxes: float64 `[N, 4]`.
      clusters, each: m and k of the paper.
      ranked: whether the best boxes come first. Then the first k of each cluster are taken; otherwise those k, one after
        the other, that add most to the sum, over the boxes of the cluster, of the overlap with the nearest one taken.
      smallest: the paper's for pictures of about 500 x 375 pixels.
    """
    size = np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-9)
    kept = boxes[(area(boxes) >= smallest) & (size.max(1) <= ELONGATED * size.min(1))]
    kept = kept if len(kept) else boxes
    share = iou(kept, kept)
    labels, chosen = normalised_cut(share, clusters), []
    for number in range(labels.max() + 1):
        members = np.flatnonzero(labels == number)
        order = np.arange(len(members)) if ranked else _covering(share[np.ix_(members, members)], each)
        chosen.append(kept[np.resize(members[order[:each]], each)])
    return np.concatenate([chosen[i % len(chosen)] for i in range(clusters)])


def normalised_cut(share: np.ndarray, clusters: int) -> np.ndarray:
    """The cluster of each box, int `[N]`, 0 to `clusters` - 1 at most, by normalised cut (Shi and Malik 2000).

    `share` float64 `[N, N]`: how near boxes are, above 0.
    """
    if len(share) <= clusters:
        return np.arange(len(share))
    from sklearn.cluster import SpectralClustering  # a second

    # "cluster_qr" draws nothing at random, and the seed is that of the eigensolver's first vector.
    cut = SpectralClustering(clusters, affinity="precomputed", assign_labels="cluster_qr", random_state=0)
    return np.unique(cut.fit_predict(np.maximum(share, CONNECTED)), return_inverse=True)[1]


def _covering(share: np.ndarray, count: int) -> np.ndarray:
    """Indices of the boxes of a cluster that cover it best, chosen greedily: the first overlaps all others most."""
    taken, covered = [], np.zeros(len(share))
    for _ in range(min(count, len(share))):
        gain = np.maximum(share, covered).sum(1)
        gain[taken] = -1
        taken.append(int(gain.argmax()))
        covered = np.maximum(covered, share[taken[-1]])
    return np.array(taken)


@functools.lru_cache(4096)
def of_windows(width: int, height: int, clusters: int, each: int, smallest: float) -> np.ndarray:
    """Hypotheses of sliding windows, which are the same for every picture of a size."""
    windows = proposals.sliding_windows(width, height, smallest=0.2, scales=5, stride=0.5)
    return choose(windows, clusters, each, ranked=False, smallest=smallest)


def bag(
    image: np.ndarray, size: int, clusters: int, each: int, source: str, smallest: float, name: str | None = None
) -> np.ndarray:
    """The images of a picture's hypotheses, each scaled to a square: uint8 `[clusters * each * size, size, C]`.

    Raises `UserError` for a file of proposals that has none of the picture.

    Args:
      image: the picture, uint8 `[H, W, C]`.
      size: height and width of the image of a hypothesis.
      clusters, each, smallest: see `choose`; without clusters the whole picture is the only hypothesis.
      source: "windows", "selective_search", or a JSON file of proposals, the best first; see `proposals`.
      name: of the picture, in such a file.
    """
    height, width = image.shape[:2]
    if not clusters:
        boxes = np.array([[0.0, 0, width, height]])
    elif source == "windows":
        boxes = of_windows(width, height, clusters, each, smallest)
    else:
        if source == "selective_search":
            found = proposals.selective_search(np.repeat(image, 3, -1) if image.shape[-1] == 1 else image)
        elif not len(found := _in_file(source).get(str(name), np.zeros((0, 4)))):
            raise UserError(f"proposals={source}: has no boxes of {name or 'this picture'}")
        boxes = choose(found, clusters, each, ranked=True, smallest=smallest)
    return cut_out(image, boxes, size)


@functools.lru_cache(4)
def _in_file(file: str) -> dict[str, np.ndarray]:
    return proposals.from_file(expanded(file))


def cut_out(image: np.ndarray, boxes: Sequence[np.ndarray] | np.ndarray, size: int) -> np.ndarray:
    """Boxes of a picture `[H, W, C]` as images of size x size, one below the other: `[N * size, size, C]`, bilinear."""
    picture = to_picture(image)
    limits = np.array([picture.width, picture.height] * 2, np.float64)
    parts = [
        np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR, box=tuple(np.clip(box, 0, limits))))
        for box in boxes
    ]
    return np.concatenate(parts).reshape(len(boxes) * size, size, image.shape[-1])


def shape(size: int, channels: int, clusters: int, each: int) -> tuple[int, int, int]:
    """The shape of a bag. Raises `UserError` for numbers that make none."""
    if not (1 <= size <= 1024 and 0 <= clusters <= 100 and 1 <= each <= 1000):
        raise UserError(f"size={size}, clusters={clusters}, each={each}: 1 to 1024, 0 to 100, 1 to 1000")
    return max(1, clusters * each) * size, size, channels
