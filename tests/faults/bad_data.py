"""A data set from outside the zoo in which something is wrong: dataset="tests.faults.bad_data(kind='label')"."""

from __future__ import annotations

from typing import Literal

import numpy as np

from nin_jax.data.datasets import synthetic
from nin_jax.data.splits import Split

INFO = synthetic.INFO


def load(
    split: str,
    data_dir: str | None = None,
    *,
    bad_records: str = "stop",
    kind: Literal["label", "nan", "inf", "empty class", "every label"],
) -> Split:
    """The made-up pictures, spoilt."""
    del bad_records  # what is wrong here is found later, by `splits.usable`
    images, labels = synthetic.load(split, data_dir)
    if kind in ("nan", "inf"):
        images = images.astype(np.float32)
        images[3, 4, 5] = np.nan if kind == "nan" else np.inf
    elif kind == "empty class":
        keep = labels != 7
        images, labels = images[keep], labels[keep]
    elif kind == "label":
        labels = labels.copy()
        labels[[3, 5]] = 10, -1
    else:
        labels = labels + 10
    return images, labels
