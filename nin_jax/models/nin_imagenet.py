"""Network In Network for ImageNet (slides of 2014, and the authors' model in the Caffe Model Zoo): 7,595,176 parameters."""

from __future__ import annotations

from collections.abc import Sequence

from nin_jax.models._stages import Dropout, MaxPool, MLPConv, Stage, Stages

NUM_CLASSES, IMAGE_SHAPE = 1000, (224, 224, 3)


class Model(Stages):
    """Four mlpconv layers and global average pooling: maps of 54, 27, 13 and 6 for images of 224 x 224.

    Geometry, initial weights and the one dropout are those of the model zoo's train_val.prototxt; cccp8, the class maps,
    is rectified there too. Attributes: see `Stages`. A deeper network is a longer `layers`.
    """

    layers: Sequence[Stage | str] = (
        MLPConv((96, 96, 96), size=11, stride=4, pad=0, deviations=(0.01, 0.05, 0.05)),
        MaxPool(size=3, stride=2),
        MLPConv((256, 256, 256), size=5, deviations=(0.05,)),
        MaxPool(size=3, stride=2),
        MLPConv((384, 384, 384), size=3, deviations=(0.01, 0.05, 0.05)),
        MaxPool(size=3, stride=2),
        Dropout(rate=0.5),
        MLPConv((1024, 1024), size=3, deviations=(0.05,)),
    )
