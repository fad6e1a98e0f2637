"""SVHN (Netzer et al. 2011): 32x32 crops of house numbers, the digit in the centre (paper section 4.4).

Besides train, test and extra, a split expression may name the two splits by which the paper's settings were chosen:

    paper_validation   6,000 examples: of each digit 400 of train, then 200 of extra
    paper_train        the other 598,388, first those of train, then those of extra

The paper does not say which ones. They are drawn as pylearn2, whose split it is, draws `valid` and `splitted_train`:
`RandomState(322)` shuffles the places of each digit, 1 to 9 and then 0, in train and then in extra, and the first ones are
held out. The order of both splits is that of the archives, as `python -m nin_jax.data.prepare svhn_cropped` keeps it.

train, test and extra are decoded once, which takes minutes and 4 GB of memory, and memory-mapped after that.
Combinations of them, such as paper_train and "train+extra", are in memory: 1.8 GB.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np

from nin_jax.data.splits import Info, Split, take
from nin_jax.data.tfds import from_tfds, prepared_splits, tfds_folder
from nin_jax.errors import UserError

HELD_OUT = {"train": 400, "extra": 200}  # examples of each digit


def paper_splits(sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes of the paper's two splits, of splits of these sizes; none of a part of SVHN that is too small for them."""
    validation = 10 * sum(HELD_OUT.values())
    rest = sum(sizes.get(name, 0) for name in HELD_OUT) - validation
    return {"paper_train": rest, "paper_validation": validation} if rest > 0 else {}


SPLITS = {"train": 73_257, "test": 26_032, "extra": 531_131}
INFO = Info(
    name="svhn_cropped",
    classes=10,
    image_shape=(32, 32, 3),
    splits=SPLITS,
    source="http://ufldl.stanford.edu/housenumbers/",
    version="3.1.0",
    prepared=True,
    composed=paper_splits(SPLITS),
)


def load(split: str, data_dir: str | None = None, *, bad_records: str = "stop") -> Split:
    """uint8 `[N, 32, 32, 3]` and int32 `[N]`, the digits; `UserError` where the data set is not prepared in `data_dir`."""
    sizes = prepared_splits(tfds_folder(INFO, data_dir)) or dict(INFO.splits)
    sizes |= paper_splits(sizes)

    def whole(name: str) -> Split:
        read = _paper if name.startswith("paper_") else functools.partial(from_tfds, INFO)
        return read(name, data_dir, bad_records=bad_records)

    return take(split, sizes, whole, INFO.name)


def _paper(split: str, data_dir: str | None, *, bad_records: str) -> Split:
    rng = np.random.RandomState(322)
    parts = []
    for name, count in HELD_OUT.items():
        images, labels = from_tfds(INFO, name, data_dir, bad_records=bad_records)
        held_out = np.zeros(len(labels), bool)
        for digit in (*range(1, 10), 0):
            places = np.flatnonzero(labels == digit)
            if len(places) < count:
                raise UserError(
                    f"split {split!r} of {INFO.name}: {name} has {len(places)} examples of the digit {digit}, "
                    f"{count} are held out"
                )
            rng.shuffle(places)
            held_out[places[:count]] = True
        parts.append((images, labels, np.flatnonzero(held_out == (split == "paper_validation"))))
    chosen = np.empty((sum(len(places) for *_, places in parts), *INFO.image_shape), np.uint8)
    start = 0
    for images, _, places in parts:
        stop = start + len(places)
        # All places are valid; to find that out first, take would make a copy.
        np.take(images, places, axis=0, out=chosen[start:stop], mode="clip")
        start = stop
    return chosen, np.concatenate([labels[places] for _, labels, places in parts])
