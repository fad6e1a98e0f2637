"""Network in ZFNet (slides of 2014): cccp layers put directly on the convolutions of ZFNet; 10.91 %, three of them 9.79 %."""

from __future__ import annotations

from collections.abc import Sequence

from nin_jax.models._stages import Head, MaxPool, MLPConv, ResponseNormalisation, Stage, Stages

NUM_CLASSES, IMAGE_SHAPE = 1000, (224, 224, 3)


class Model(Stages):
    """`zfnet` with cccp layers after each convolution, of the slides' numbers of maps: 65,630,024 parameters.

    With head "gap" the two hidden layers give way to class maps on cccp6, and 7,255,880 parameters are left. Edges,
    pools, normalisation and initial weights are those of `zfnet`; that cccp layers start from N(0, 2 / fan-in) is our
    choice, as the slides say nothing of it. Attributes: see `Stages`.
    """

    layers: Sequence[Stage | str] = (
        MLPConv((96, 96), size=7, stride=2, pad=1, deviations=(0.01, "he")),
        MaxPool(size=3, stride=2),
        ResponseNormalisation(size=5, alpha=0.0001, beta=0.75),
        MLPConv((256, 256), size=5, stride=2, pad=0, deviations=(0.01, "he")),
        MaxPool(size=3, stride=2),
        ResponseNormalisation(size=5, alpha=0.0001, beta=0.75),
        MLPConv((512, 256), size=3, deviations=(0.01, "he")),
        MLPConv((1024, 512, 384), size=3, deviations=(0.01, "he", "he")),
        MLPConv((512, 256), size=3, deviations=(0.01, "he")),
        MaxPool(size=3, stride=2),
    )
    head: Head = "fc_dropout"
    hidden: Sequence[int] = (4096, 4096)
