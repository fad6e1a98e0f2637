"""The 1,797 handwritten digits of 8x8 pixels that come with scikit-learn (UCI, Alpaydin and Kaynak 1998): no download.

The test split is every fifth example of each class, in file order.
"""

from __future__ import annotations

import importlib.metadata

import numpy as np

from nin_jax.data.splits import Info, Split, take

INFO = Info(
    name="digits",
    classes=10,
    image_shape=(8, 8, 1),
    splits={"train": 1_442, "test": 355},
    source="https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
)


def load(split: str, data_dir: str | None = None, *, bad_records: str = "stop") -> Split:
    """uint8 `[N, 8, 8, 1]`, 0 to 255 (the original's 17 levels stretched), and int32 `[N]`."""
    del data_dir, bad_records  # there are none
    # The file alone: importing scikit-learn takes longer than everything else before the first update.
    file = importlib.metadata.distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    rows = np.loadtxt(str(file), delimiter=",", dtype=np.float64)  # 64 pixels of 0 to 16, then the digit
    images = np.round(rows[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = rows[:, -1].astype(np.int32)
    number_within_class = np.zeros(len(labels), int)
    for k in range(INFO.classes):
        number_within_class[labels == k] = np.arange((labels == k).sum())
    held_out = number_within_class % 5 == 4
    splits = {"train": (images[~held_out], labels[~held_out]), "test": (images[held_out], labels[held_out])}
    return take(split, INFO.splits, splits.__getitem__, INFO.name)
