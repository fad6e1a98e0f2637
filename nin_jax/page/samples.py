"""A few test images for the page to begin with: those in the package, else a run's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nin_jax import data
from nin_jax.errors import UserError
from nin_jax.page.report import address, png
from nin_jax.training.build import Run
from nin_jax.training.predict import Classifier

COUNT = 10
PACKAGED = Path(data.__file__).parent / "samples"
# Where PACKAGED has test images of a data set, each named by its class: of each class, or of the first ten that come up in the
# test split, the first image.
FOLDERS = {"cifar10": "", "mnist": "", "cifar100": "cifar100"}


def of(classifier: Classifier) -> list[dict[str, Any]]:
    """Test images of the classifier's data set as PNG files in data URLs ("image"), with their "label".

    Of a data set of which the package has none, the first of each of ten classes of the run's evaluation split; none where that
    is not at hand, is streamed, or has several labels an image.
    """
    config, info, names = classifier.config, classifier.info, classifier.class_names
    if info.name in FOLDERS:
        files = [(k, PACKAGED / FOLDERS[info.name] / f"{name}.png") for k, name in enumerate(names)]
        return [{"image": address(file.read_bytes()), "label": k} for k, file in files if file.exists()]
    try:
        split = Run(config, info).load(config.eval_split)
    except UserError:  # a page without samples is a page all the same
        return []
    if not isinstance(split, tuple) or info.multilabel:
        return []
    images, labels = split
    first = sorted(np.unique(labels, return_index=True)[1].tolist())[:COUNT]
    return [{"image": png(images[i], optimize=True), "label": int(labels[i])} for i in first]
