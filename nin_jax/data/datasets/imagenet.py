"""ImageNet, the 1,000 classes of ILSVRC 2012 (Russakovsky et al. 2015): pictures of any size, streamed.

The short side is scaled to 256 pixels ("256xN"). In training a window of 224 x 224 is cut at a random place, anywhere
along the long side; in evaluation by the protocol of `eval.views`.
"""

from __future__ import annotations

from nin_jax.data.encoded import Pictures
from nin_jax.data.splits import Info
from nin_jax.data.tfds import tfds_records
from nin_jax.errors import UserError

INFO = Info(
    name="imagenet2012",
    classes=1000,
    image_shape=(224, 224, 3),
    splits={"train": 1_281_167, "validation": 50_000},
    source="https://image-net.org/challenges/LSVRC/2012/",
    version="5.1.0",
    prepared=True,
    streamed=True,
)


def info(data_dir: str | None = None, *, size: int = 224, short: int = 256) -> Info:
    """The facts, with the size of the window that the network sees."""
    del data_dir
    if not 1 <= size <= short <= 1024:
        raise UserError(f"dataset imagenet(size={size}, short={short}): 1 <= size <= short <= 1024")
    return INFO._replace(image_shape=(size, size, 3))


def load(
    split: str, data_dir: str | None = None, *, bad_records: str = "stop", size: int = 224, short: int = 256
) -> Pictures:
    """The split, not decoded. The short side is scaled to `short`; windows are size x size.

    A bad record is found when it is read; `bad_records` says whether it is then left out ("skip").
    """
    records = tfds_records(INFO, split, data_dir)
    return Pictures(f"{INFO.name} {split}", records, INFO.classes, short, size, bad_records == "skip")
