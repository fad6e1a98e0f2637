"""CIFAR-100 (Krizhevsky 2009): 32x32 colour photographs of a hundred kinds of objects (paper section 4.3)."""

from __future__ import annotations

import functools

from nin_jax.data.splits import Info
from nin_jax.data.tfds import from_tfds

NAMES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
    camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
    cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
    lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
    oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
    spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""  # by label, in the order of the archive

INFO = Info(
    name="cifar100",
    classes=100,
    image_shape=(32, 32, 3),
    splits={"train": 50_000, "test": 10_000},
    source="https://www.cs.toronto.edu/~kriz/cifar.html",
    version="3.0.2",
    prepared=True,
    class_names=tuple(NAMES.split()),
)

load = functools.partial(from_tfds, INFO)
