"""The network that the slides of 2014 put NIN into: a variant of ZFNet (Zeiler and Fergus 2013)."""

from __future__ import annotations

from collections.abc import Sequence

from nin_jax.models._stages import Head, MaxPool, MLPConv, ResponseNormalisation, Stage, Stages

NUM_CLASSES, IMAGE_SHAPE = 1000, (224, 224, 3)


class Model(Stages):
    """Five convolutions of 96, 256, 512, 1024 and 512 maps and a head of 4096, 4096 units and the classes.

    The slides give kernels, strides and maps. Pools of 3 x 3 and response normalisation after the first two are
    ZFNet's, its edges those that give its maps of 110, 55, 26, 13 and 6 for images of 224 x 224; the constants of the
    normalisation are Caffe's for AlexNet, as no source has them. Weights start from N(0, 0.01^2). Attributes: see `Stages`.
    """

    layers: Sequence[Stage | str] = (
        MLPConv((96,), size=7, stride=2, pad=1, deviations=(0.01,)),
        MaxPool(size=3, stride=2),
        ResponseNormalisation(size=5, alpha=0.0001, beta=0.75),
        MLPConv((256,), size=5, stride=2, pad=0, deviations=(0.01,)),
        MaxPool(size=3, stride=2),
        ResponseNormalisation(size=5, alpha=0.0001, beta=0.75),
        MLPConv((512,), size=3, deviations=(0.01,)),
        MLPConv((1024,), size=3, deviations=(0.01,)),
        MLPConv((512,), size=3, deviations=(0.01,)),
        MaxPool(size=3, stride=2),
    )
    head: Head = "fc_dropout"
    hidden: Sequence[int] = (4096, 4096)
