"""AlexNet (Krizhevsky, Sutskever, Hinton 2012), the baseline of the slides' table: 60,965,224 parameters, 40.7 % top-1 error."""

from __future__ import annotations

from collections.abc import Sequence

from nin_jax.models._stages import Head, MaxPool, MLPConv, ResponseNormalisation, Stage, Stages

NUM_CLASSES, IMAGE_SHAPE = 1000, (224, 224, 3)


class Model(Stages):
    """Five convolutions, three of them in two groups, and a head of 4096, 4096 units and the classes.

    As in Caffe's bvlc_alexnet: response normalisation before the pool, with alpha divided by the 5 maps; the biases of
    conv2, conv4, conv5, fc1 and fc2 start at 0.1. Images of 224 x 224 give the same 6 x 6 as Caffe's 227. Attributes: see `Stages`.
    """

    layers: Sequence[Stage | str] = (
        MLPConv((96,), size=11, stride=4, pad=0, deviations=(0.01,)),
        ResponseNormalisation(size=5, alpha=0.0001, beta=0.75),
        MaxPool(size=3, stride=2),
        MLPConv((256,), size=5, groups=2, deviations=(0.01,), bias=0.1),
        ResponseNormalisation(size=5, alpha=0.0001, beta=0.75),
        MaxPool(size=3, stride=2),
        MLPConv((384,), size=3, deviations=(0.01,)),
        MLPConv((384,), size=3, groups=2, deviations=(0.01,), bias=0.1),
        MLPConv((256,), size=3, groups=2, deviations=(0.01,), bias=0.1),
        MaxPool(size=3, stride=2),
    )
    head: Head = "fc_dropout"
    hidden: Sequence[int] = (4096, 4096)
    hidden_deviation: float | str = 0.005
    hidden_bias: float = 0.1
