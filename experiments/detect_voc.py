"""Detection in real pictures laid out as VOC's: --config.path=.../VOCdevkit/VOC2007

The networks are those of CIFAR: they see 32 x 32 pixels of each region, and know seven of the twenty classes. What comes
out is no figure of the field; beside it stand the same steps on gradients and on colours.

    detect_voc.py           features of one network
    detect_voc.py:three, :context, :hog, :colour, :places   as in detect_scenes.py
"""

from nin_jax.config import words
from nin_jax.detection.config import default

ARGUMENTS = ("three", "context", "hog", "colour", "places")


def get_config(arg=None):
    chosen = words(arg, ARGUMENTS)
    config = default()
    config.data = "voc"
    config.localise = "nin.cifar10"
    config.names = ("aeroplane=airplane", "boat=ship", "car=automobile")
    config.finest = 0.5
    config.flip = False
    config.enlarge = (0.1, 0.15, 0.22)
    if "three" in chosen or "context" in chosen:
        config.networks = ("nin.cifar10", "nin.cifar100", "nin.mnist")
        config.context = "context" in chosen
    elif "places" in chosen:
        config.networks = ()
    elif chosen:
        config.networks = tuple(chosen)
        config.localise = None
    return config
