"""Detection in composed scenes: CIFAR-10 images on textured ground, so that every box is known.

detect_scenes.py           features of one network
detect_scenes.py:three     those of three networks behind one another, as in the slides of 2014
detect_scenes.py:context   three, with scores corrected by the whole picture
detect_scenes.py:hog       a baseline without a network: histograms of oriented gradients
detect_scenes.py:colour    another: mean colours
detect_scenes.py:places    no detection, only the boxes of class maps
"""

from nin_jax.config import words
from nin_jax.detection.config import default

ARGUMENTS = ("three", "context", "hog", "colour", "places")


def get_config(arg=None):
    chosen = words(arg, ARGUMENTS)
    config = default()
    config.scenes.train, config.scenes.test, config.fewest_boxes = 100, 100, 5
    config.proposals.smallest = 0.25
    config.proposals.scales = 4
    config.finest = 1.0
    config.localise = "nin.cifar10"
    if "three" in chosen or "context" in chosen:
        config.networks = ("nin.cifar10", "nin.cifar100", "nin.mnist")
        config.context = "context" in chosen
    elif "places" in chosen:
        config.networks = ()
    elif chosen:
        config.networks = tuple(chosen)
        config.localise = None
    return config
