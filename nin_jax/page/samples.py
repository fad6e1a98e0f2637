"""A few test images of each data set, which lie in the package so that a page can be made where the data set is not.

    python -m nin_jax.page.samples mnist cifar10 cifar100

takes them from the prepared data sets: the first image of each of the first ten classes that come up in the test split,
as `samples/NAME/INDEX_LABEL.png`.
"""

from __future__ import annotations

import base64
import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from nin_jax import registry
from nin_jax.console import exiting, say

FOLDER = Path(__file__).parent / "samples"
COUNT = 10


def take(name: str) -> None:
    """Writes the images of a data set's test split into the package."""
    images, labels = registry.find("datasets", name).load("test")
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    for i in first(labels):
        (folder / f"{i:04d}_{labels[i]}.png").write_bytes(png(images[i]))
    say(f"{folder}: {len(list(folder.iterdir()))} images")


def first(labels: np.ndarray) -> list[int]:
    """Where the first ten classes that come up in `labels` come up first."""
    return sorted(np.unique(labels, return_index=True)[1].tolist())[:COUNT]


def first_of_each_class(images: np.ndarray, labels: np.ndarray) -> list[dict[str, str | int]]:
    """Such images of any split, as `of` returns them."""
    return [{"image": data_url(png(images[i])), "label": int(labels[i])} for i in first(labels)]


def png(image: np.ndarray) -> bytes:
    """A PNG file of uint8 `[H, W, 1 or 3]`."""
    file = io.BytesIO()
    Image.fromarray(image if image.shape[-1] == 3 else image[..., 0]).save(file, "png", optimize=True)
    return file.getvalue()


def of(name: str) -> list[dict[str, str | int]]:
    """The images of a data set as data URLs ("image"), with their "label"; none where the package has none."""
    return [
        {"image": data_url(file.read_bytes()), "label": int(file.stem.split("_")[1])}
        for file in sorted((FOLDER / name).glob("*.png"))
    ]


def data_url(png: bytes) -> str:
    """A PNG file as a URL that holds it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


if __name__ == "__main__":
    with exiting():
        for word in sys.argv[1:]:
            take(word)
