"""Network In Network (Lin, Chen, Yan 2013) in JAX/Flax: models, trained networks, training, evaluation.

>>> import nin_jax
>>> from nin_jax.data.datasets import digits
>>> images, labels = digits.load("test[:3]")  # uint8 [3, 8, 8, 1]
>>> classifier = nin_jax.load("nin.digits")
>>> [prediction.name for prediction in classifier.classify(images)]
['5', '0', '9']
>>> classifier.evidence(images[0], "5").shape
(8, 8)

Everything is imported when it is first used: `import nin_jax` and `list_models` do without JAX.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from flax import nnx
    from flax.linen import Module

    from nin_jax.training.predict import Classifier, Picture

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "create_model",
    "create_transform",
    "list_models",
    "list_pretrained",
    "load",
    "load_run",
    "resolve_model_data_config",
    "samples",
    "to_nnx",
]


def list_models(filter: str = "*", pretrained: bool = False) -> list[str]:
    """Names of the models of the zoo that match a pattern; with `pretrained`, of the trained networks, MODEL.TAG.

    >>> list_models("*imagenet*")
    ['nin_imagenet']
    >>> list_models("*digits", pretrained=True)
    ['nin.digits']
    """
    import fnmatch

    from nin_jax import registry
    from nin_jax.training import pretrained as shipped

    return shipped.names(filter) if pretrained else fnmatch.filter(registry.names("models"), filter)


def list_pretrained() -> list[str]:
    """Names of the trained networks that come with the package, as `load` and `create_model` take them."""
    return list_models(pretrained=True)


def create_model(
    name: str,
    *,
    pretrained: bool | str | Path = False,
    num_classes: int | None = None,
    in_chans: int | None = None,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    image_size: int | None = None,
    seed: int = 0,
    **arguments: Any,
) -> tuple[Module, dict[str, Any]]:
    """A Flax module and its variables: `logits, maps = model.apply(variables, image, train=False)`, see `nin_jax.models`.

    >>> model, variables = create_model("nin.digits", pretrained=True, num_classes=3)  # a new layer of the classes
    >>> variables["params"]["mlpconv2"]["cccp4"]["kernel"].shape
    (1, 1, 64, 3)

    Raises `UserError` for an unknown name, an unknown argument, or a value that an argument does not allow.

    Args:
      name: a model of `list_models()`, or a trained network of `list_pretrained()`, whose arguments the model then has.
      pretrained: True: the weights of the trained network `name`. Or what `load` takes: a folder, a run directory,
        "hf-hub:OWNER/NAME". False: random weights.
      num_classes: number of logits. If the weights have another number, the layer of the classes starts from random
        weights. 0: the network returns features `[B, D]` instead of logits. None: that of the weights, or of the paper.
      in_chans: channels of the images. The first layer of trained weights is summed over its channels for one channel,
        and repeated for more; the preprocessing is not changed.
      features_only: whether the model returns a list of feature maps `[B, H, W, C]`, the last of each size, the largest
        first. `model.levels` names them, with their channels and reductions.
      out_indices: which levels; None: all.
      image_size: height and width of the images, which fully connected layers depend on; None: that of the weights, or
        of the paper.
      seed: of random weights.
      **arguments: those of the model, see its file.
    """
    from nin_jax.weights import zoo

    return zoo.create_model(
        name,
        pretrained=pretrained,
        num_classes=num_classes,
        in_chans=in_chans,
        features_only=features_only,
        out_indices=out_indices,
        image_size=image_size,
        seed=seed,
        **arguments,
    )


def load(name_or_dir: str | Path, *, trust: bool = False) -> Classifier:
    """A trained network that takes pictures and returns names, probabilities, logits and maps: see `Classifier`.

    Raises `UserError`, also for weights that do not match their checksum.

    Args:
      name_or_dir: a name of `list_pretrained()`; a run directory, of which the newest good checkpoint is taken; a folder
        made by `python -m nin_jax.weights.publish`; or such a folder on the Hugging Face Hub, "hf-hub:OWNER/NAME[@REVISION]".
      trust: whether modules outside the zoo that its config names may be imported, and so executed. Nothing else in a
        folder is executed or unpickled, so it may be a stranger's.
    """
    from nin_jax.weights import zoo

    return zoo.load(name_or_dir, trust=trust)


load_run = load


def resolve_model_data_config(network: str | Path | Classifier) -> dict[str, Any]:
    """How pictures become the input of a trained network, as arguments of `create_transform`.

    >>> config = resolve_model_data_config("nin.digits")
    >>> config["input_size"], config["preprocess"]
    ((8, 8, 1), ('scale(divisor=255)',))

    Args:
      network: what `load` takes or returns.
    """
    from nin_jax.weights import zoo

    return zoo.resolve_model_data_config(network)


def create_transform(
    input_size: tuple[int, int, int],
    preprocess: Sequence[str] = (),
    statistics: Sequence[dict[str, Any]] = (),
    background: str = "white",
) -> Callable[[Picture], np.ndarray]:
    """A function from a picture (file name, PIL picture, uint8 array) to the float32 `[H, W, C]` input of the network.

    Args:
      input_size: height, width and channels.
      preprocess: calls of ops of `nin_jax.data.preprocess`.
      statistics: what was fitted for each op.
      background: the colour that transparent pictures are laid on.
    """
    from nin_jax.weights import zoo

    return zoo.create_transform(input_size, preprocess, statistics, background)


def samples() -> dict[str, Path]:
    """Pictures to try a network on, PNG files by class: a test image of each class of CIFAR-10 and of MNIST.

    >>> str(samples()["cat"].relative_to(Path(__file__).parent))
    'data/samples/cat.png'
    """
    return {file.stem: file for file in sorted((Path(__file__).parent / "data" / "samples").glob("*.png"))}


def to_nnx(model: Module, variables: Mapping[str, Any], image: Any) -> nnx.Module:
    """The network as a module of Flax NNX, `module(image, train=False)`, with the same variables and logits.

    Args:
      model, variables: of `create_model`.
      image: any batch `[B, H, W, C]`, for the shapes.
    """
    from nin_jax.weights import zoo

    return zoo.to_nnx(model, variables, image)
