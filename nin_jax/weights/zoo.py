"""The functions of `nin_jax` that timm's users know: models with their weights, transforms, features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from nin_jax import registry
from nin_jax.data import fitted
from nin_jax.errors import UserError, nearest, one_line
from nin_jax.models._features import Features, levels
from nin_jax.storage import expanded
from nin_jax.training import pretrained as shipped
from nin_jax.training import safetensors
from nin_jax.training.predict import Classifier, Picture, decoded
from nin_jax.training.state import init_variables

SIDES = 1024  # pixels, at most, of the images a model is made for


def load(name_or_dir: str | Path, *, trust: bool = False) -> Classifier:
    """A trained network that takes pictures and returns names, probabilities, logits and maps: see `Classifier`.

    Raises `UserError`, also for weights that do not match their checksum.

    Args:
      name_or_dir: a name of `list_pretrained()`; a run directory, of which the newest good checkpoint is taken; a folder
        made by `python -m nin_jax.weights.publish`; or such a folder on the Hugging Face Hub, "hf-hub:OWNER/NAME[@REVISION]".
      trust: whether modules outside the zoo that its config names may be imported, and so executed. Nothing else in a
        folder is executed or unpickled, so it may be a stranger's.
    """
    name = str(name_or_dir)
    if source := shipped.find(name):
        return safetensors.read(*source, trust=trust)
    if not expanded(name).is_dir():
        raise shipped.unknown(name)
    from nin_jax.training.load import load_run  # it imports orbax, which takes a third of a second

    return load_run(name, trust=trust)


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
) -> tuple[nn.Module, dict[str, Any]]:
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
    architecture, _, tag = name.partition(".")
    found = None
    if pretrained or (tag and name in shipped.names()):
        found = _source(name, pretrained)
        if name not in (str(found.metadata.get("name")), found.config.model.name):
            raise UserError(f"{pretrained} holds a {found.config.model.name!r}, not a {name!r}")
        if arguments:
            raise UserError(
                f"{next(iter(arguments))}: the arguments of {found.config.model.name!r} are those of its weights"
            )
        architecture, arguments = found.config.model.name, dict(found.config.model.arguments)
    elif tag and architecture in registry.names("models"):
        raise shipped.unknown(name)
    else:
        architecture = name
    entry = registry.find("models", architecture)
    shape = found.info.image_shape if found else getattr(entry, "IMAGE_SHAPE", (32, 32, 3))
    classes = found.info.classes if found else getattr(entry, "NUM_CLASSES", 10)
    height, width = image_size or shape[0], image_size or shape[1]
    channels = shape[2] if in_chans is None else in_chans
    shape = height, width, channels
    classes = classes if num_classes is None else num_classes
    if features_only:
        classes = 0
    _check(num_classes=(classes, 0), in_chans=(channels, 1), image_size=(min(height, width), 1))
    try:
        model: nn.Module = registry.create(architecture, classes, **arguments)
        new = jax.eval_shape(lambda: init_variables(model, seed, shape))
    except (ValueError, TypeError) as error:  # whatever flax or jax raises for wrong arguments or sizes
        raise UserError(f"model {architecture} of {height} x {width} x {channels}: {one_line(error)[:300]}") from error
    chosen: nn.Module = model
    if features_only:
        made = levels(model, shape)
        try:
            made = made if out_indices is None else tuple(made[i] for i in out_indices)
        except IndexError as error:
            raise UserError(f"out_indices={tuple(out_indices or ())}: there are {len(made)} levels") from error
        chosen = Features(model, made)
    elif out_indices is not None:
        raise UserError("out_indices: needs features_only=True")
    old = found.variables if found and pretrained else {}
    return chosen, _variables(model, seed, shape, new, old)


def _check(**numbers: tuple[int, int]) -> None:
    for name, (value, least) in numbers.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UserError(f"{name}={value!r}: must be a whole number, {least} or more")


def _source(name: str, pretrained: bool | str | Path) -> Classifier:
    """The trained network that `create_model` starts from. Raises `UserError`."""
    if not isinstance(pretrained, bool):
        return load(pretrained)
    if source := shipped.find(name) if name in shipped.names() else None:
        return safetensors.read(*source)
    registry.find("models", name.partition(".")[0])
    several = shipped.names(f"{name.partition('.')[0]}.*")
    if not several:
        raise UserError(f"model {name!r} has no trained weights; those that do: {nearest(name, shipped.names())}")
    raise UserError(f"model {name!r} with pretrained=True: name the weights: {nearest(name, several)}")


def _variables(
    model: nn.Module, seed: int, image_shape: tuple[int, int, int], new: Any, old: Mapping[str, Any]
) -> dict[str, Any]:
    """The variables of `old` with a path and shape of `new`, and random ones for the rest; no empty collection."""
    shapes: Any = flatten_dict(new)
    theirs: Any = flatten_dict(dict(old))
    taken = {path: _fitted_to(np.asarray(theirs[path]), shapes[path].shape) for path in shapes.keys() & theirs.keys()}
    with jax.enable_x64(False):
        variables = {path: jnp.asarray(value) for path, value in taken.items() if value.shape == shapes[path].shape}
        if len(variables) < len(shapes):
            drawn: Any = jax.jit(lambda: init_variables(model, seed, image_shape))()
            variables = flatten_dict(drawn) | variables
    return unflatten_dict(variables)


def _fitted_to(kernel: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A convolution's kernel for another number of channels, as in timm; only that of the first layer has to change.

    For one channel its filters are summed; for others they are repeated, and scaled to the same sum.
    """
    if kernel.ndim != 4 or (*kernel.shape[:2], kernel.shape[3]) != (*shape[:2], *shape[3:]):
        return kernel
    before, channels = kernel.shape[2], shape[2]
    if channels == 1:
        return kernel.sum(2, keepdims=True)
    repeated = np.tile(kernel, (1, 1, -(-channels // before), 1))[:, :, :channels]
    return repeated * np.float32(before / channels)


def resolve_model_data_config(network: str | Path | Classifier) -> dict[str, Any]:
    """How pictures become the input of a trained network, as arguments of `create_transform`.

    >>> config = resolve_model_data_config("nin.digits")
    >>> config["input_size"], config["preprocess"]
    ((8, 8, 1), ('scale(divisor=255)',))

    Args:
      network: what `load` takes or returns.
    """
    network = network if isinstance(network, Classifier) else load(network)
    if hasattr(network.config.dataset.entry, "image"):
        raise UserError(
            f"dataset {network.config.dataset} makes images of pictures in a way of its own: take those of the network's read()"
        )
    return {
        "input_size": network.info.image_shape,
        "preprocess": tuple(map(str, network.config.preprocess)),
        "statistics": [{name: np.asarray(value) for name, value in one.items()} for one in network.stats],
        "background": network.config.dataset.arguments.get("background", "white"),
    }


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
    ops = registry.calls("preprocess", preprocess)
    height, width, channels = input_size
    learned = list(statistics) or [{} for _ in ops]

    def transform(picture: Picture) -> np.ndarray:
        image = decoded(picture, (height, width, channels), background)
        return np.asarray(fitted.apply(ops, learned, jnp.asarray(image[None]))[0])

    return transform


def to_nnx(model: nn.Module, variables: Mapping[str, Any], image: Any) -> nnx.Module:
    """The network as a module of Flax NNX, `module(image, train=False)`, with the same variables and logits.

    Args:
      model, variables: of `create_model`.
      image: any batch `[B, H, W, C]`, for the shapes.
    """

    def bridged() -> Any:
        return nnx.bridge.ToNNX(model, rngs=nnx.Rngs(0)).lazy_init(image, train=False)

    module = nnx.eval_shape(bridged)  # initialising it operation by operation would take ten seconds
    state = nnx.state(module)
    arrays: Any = {path: value for tree in variables.values() for path, value in flatten_dict(tree).items()}
    random: Any = flatten_dict(nnx.to_pure_dict(nnx.state(nnx.Rngs(0))))  # they lie one level down
    paths: Any = flatten_dict(nnx.to_pure_dict(state))
    filled: Any = {path: arrays[path] if path in arrays else random[path[1:]] for path in paths}
    nnx.replace_by_pure_dict(state, unflatten_dict(filled))
    nnx.update(module, state)
    return module
