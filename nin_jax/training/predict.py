"""Using a trained network: pictures in; names, probabilities and evidence maps out."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from PIL import Image, ImageColor

from nin_jax.config import Config
from nin_jax.console import say
from nin_jax.data import fitted
from nin_jax.data.pictures import FOLDER_FORMATS, Unreadable, open_picture, reason, to_image, upright
from nin_jax.data.splits import Info
from nin_jax.devices.mesh import host
from nin_jax.errors import UserError, nearest, one_line
from nin_jax.storage import expanded

Picture = str | os.PathLike[str] | Image.Image | np.ndarray  # a file, or what is decoded already

WANTED = "a file name, a PIL picture or a uint8 array"
BATCH = 128  # most images per call of the network
TOP = 5  # classes of a prediction
SHOWN = 256  # pixels, at least, of the short side of an overlay
OPACITY = 0.65  # of the strongest evidence over a picture


class Guess(NamedTuple):
    """A class, by name and index, and its probability."""

    name: str
    index: int
    probability: float


class Prediction(NamedTuple):
    """The network's answer for a picture.

    Attributes:
      name, index, probability: of the most probable class.
      top: the five most probable classes, the most probable first.
    """

    name: str
    index: int
    probability: float
    top: tuple[Guess, ...]


class Predictor:
    """A trained network as a function of uint8 images, with its preprocessing.

    Compiled once for each image size and each batch size that is a power of two; batches are padded to the next one.

    Args:
      config: of its training; `preprocess`, `precision` and `dataset` are used.
      info: facts of the data set that it was trained on.
      model: the network.
      variables: its "params" and "batch_stats".
      stats: what was fitted for each op of `config.preprocess`.
      step: finished updates of its training.
      metadata: what its file says about it, see `training.safetensors`; empty for a run directory.

    Attributes:
      class_names: by index of the logits; numbers where the data set has no names.
      params: its parameters; their average where the recipe takes one.
    """

    def __init__(
        self,
        config: Config,
        info: Info,
        model: nn.Module,
        variables: Mapping[str, Any],
        stats: fitted.Stats,
        *,
        step: int | None = None,
        metadata: Mapping[str, Any] | None = None,
    ):
        self.config, self.info, self.model, self.step = config, info, model, step
        self.variables, self.stats = jax.device_put((dict(variables), stats))
        self.metadata = dict(metadata or {})
        self.class_names = info.names

        def outputs(variables: Any, stats: Any, image: jax.Array) -> Any:
            with jax.default_matmul_precision(config.precision):
                return model.apply(variables, fitted.apply(config.preprocess, stats, image), train=False)

        def shown(variables: Any, stats: Any, image: jax.Array) -> Any:
            logits, maps = outputs(variables, stats, image)
            return logits, maps.get("class_maps")

        self._outputs, self._shown = jax.jit(outputs), jax.jit(shown)
        self._sizes, self._warned = {info.image_shape[:2]}, False
        shape = ", ".join(map(str, info.image_shape))
        self._wanted = f"expected whole numbers from 0 to 255 (uint8), of shape [B, {shape}]"

    @property
    def params(self) -> Any:
        return self.variables["params"]

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Logits float32 `[B, K]` and every named map of images, preprocessed as in training; all in one batch.

        Raises `UserError` for images that the network was not trained for.

        Args:
          images: uint8 `[B, H, W, C]`, 0 to 255, or whole numbers of another type in this range. H and W are those of
            training; others are accepted if neither the preprocessing nor the network depends on them.
        """
        with jax.enable_x64(False):
            return host(self._outputs(self.variables, self.stats, self._checked(images)))

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Logits float32 `[B, K]` of any number of images, which are as for `__call__`; computed in batches."""
        return np.concatenate([np.asarray(logits)[:count] for logits, _, count in self._batches(self._checked(images))])

    def class_maps(self, images: np.ndarray) -> np.ndarray:
        """The class maps alone, float32 `[B, h, w, K]`, of images as for `__call__`. Raises `UserError` if it has none."""
        with jax.enable_x64(False):
            _, maps = self._shown(self.variables, self.stats, self._checked(images, quiet=True))
        if maps is None:
            raise UserError(f"model {self.config.model.name!r} has no class maps to show")
        return np.asarray(maps, np.float32)

    def _batches(self, images: np.ndarray) -> Iterator[tuple[jax.Array, Any, int]]:
        """Logits and class maps of padded batches, and the number of images in each."""
        with jax.enable_x64(False):
            for start in range(0, len(images), BATCH):
                batch = images[start : start + BATCH]
                missing = (1 << (len(batch) - 1).bit_length()) - len(batch)
                filled = np.concatenate([batch, np.zeros((missing, *batch.shape[1:]), np.uint8)])
                yield *self._shown(self.variables, self.stats, filled), len(batch)

    def _checked(self, images: np.ndarray, quiet: bool = False) -> np.ndarray:
        (height, width, channels), wanted = self.info.image_shape, self._wanted
        try:
            images = np.asarray(images)
        except ValueError as error:  # NumPy's, of pictures that do not make one array
            raise UserError(f"images of several shapes: {wanted}") from error
        given = f"images of {images.dtype} {list(images.shape)}"
        if not np.issubdtype(images.dtype, np.integer):
            raise UserError(f"{given}: {wanted}")
        if images.ndim != 4 or images.shape[-1] != channels:
            raise UserError(f"{given}: {wanted}; the channels come last, and one image is a batch of one")
        if not images.size:
            raise UserError(f"{given}: there is no image; {wanted}")
        if images.min() < 0 or images.max() > 255:
            raise UserError(f"{given} from {images.min()} to {images.max()}: {wanted}")
        if images.max() == 1 and not self._warned:
            self._warned = True
            say(f"warning: {given} from 0 to 1, which is almost black: white is 255")
        if images.shape[1:3] not in self._sizes:
            self._check_size(f"{given}: {wanted}", images.shape)
            if not quiet:
                say(f"{given}: the network was trained on {height} x {width}")
            self._sizes.add(images.shape[1:3])
        return images.astype(np.uint8)

    def _check_size(self, what: str, shape: tuple[int, ...]) -> None:
        """Raises `UserError` if an op or the network depends on the size of the images."""
        for op in self.config.preprocess:
            if not getattr(op.entry, "ANY_SIZE", False):
                raise UserError(f"{what}; {op} is for images of this size")
        try:
            _, maps = jax.eval_shape(self._outputs, self.variables, self.stats, jax.ShapeDtypeStruct(shape, np.uint8))
        except Exception as error:  # whatever a layer makes of the size
            raise UserError(f"{what}; the network does not take this size: {one_line(error)[:200]}") from error
        if empty := [name for name, m in maps.items() if not math.prod(m.shape)]:
            raise UserError(f"{what}; of this size nothing is left at {empty[0]}")


class Classifier(Predictor):
    """A trained network that takes pictures and knows the names of its classes. `nin_jax.load` makes one."""

    def classify(self, pictures: Picture | Iterable[Picture]) -> list[Prediction]:
        """The answer for each picture, in order; one picture gives a list of one.

        A picture of another size is scaled until it covers the network's size and cropped to the centre, and made grey
        or coloured as the network's images are. Raises `UserError` for a picture that cannot be read.

        Args:
          pictures: names of files, PIL pictures, or uint8 arrays `[H, W]` or `[H, W, C]`, one or many; or an array
            `[B, H, W, C]`.
        """
        logits = self.logits(self.read(pictures)).astype(np.float64)
        powers = np.exp(logits - logits.max(-1, keepdims=True))
        return [self._prediction(p) for p in powers / powers.sum(-1, keepdims=True)]

    def _prediction(self, probabilities: np.ndarray) -> Prediction:
        best = np.argsort(-probabilities, kind="stable")[:TOP].tolist()
        top = tuple(Guess(self.class_names[k], k, float(probabilities[k])) for k in best)
        return Prediction(*top[0], top)

    def evidence(self, picture: Picture, name_or_index: str | int) -> np.ndarray:
        """Where the evidence for a class is in a picture: float32 `[H, W]` over the network's image, 0 to 1.

        The class map (paper section 3.2), enlarged (bilinear), with negative values set to 0. 1 is the strongest
        evidence for any class in this picture, so the maps of two classes can be compared. Raises `UserError` for an
        unknown class, and for a network without class maps.
        """
        index = self._index(name_or_index)
        image = self.read(picture)
        if len(image) != 1:
            raise UserError(f"evidence takes one picture; {len(image)} are given")
        maps = np.maximum(self.class_maps(image)[0], 0)
        shown = maps[..., index] / max(float(maps.max()), 1e-9)
        height, width = image.shape[1:3]
        enlarged = Image.fromarray(shown).resize((width, height), Image.Resampling.BILINEAR)
        return np.clip(np.asarray(enlarged, np.float32), 0, 1)

    def overlay(self, picture: Picture, name_or_index: str | int | None = None) -> Image.Image:
        """A picture, cropped as the network sees it, under the evidence for a class, in colours from red over yellow to
        white.

        Args:
          picture: one picture.
          name_or_index: the class; None: the most probable one.
        """
        if name_or_index is None:
            name_or_index = self.classify(picture)[0].index
        evidence = Image.fromarray(self.evidence(picture, name_or_index))
        height, width = evidence.height, evidence.width
        factor = max(1, math.ceil(SHOWN / min(height, width)))
        size = (factor * width, factor * height)
        heat = np.asarray(evidence.resize(size, Image.Resampling.BILINEAR))[..., None]
        colours = 255 * np.clip(3 * heat - np.arange(3), 0, 1)  # red first, then green, then blue
        below = self._decoded(picture, (size[1], size[0], 3)).astype(np.float32)
        return Image.fromarray(np.round(below + OPACITY * heat * (colours - below)).astype(np.uint8))

    def read(self, pictures: Picture | Iterable[Picture]) -> np.ndarray:
        """Pictures, as for `classify`, as the network sees them: uint8 `[B, H, W, C]`."""
        if isinstance(pictures, np.ndarray) and pictures.ndim == 4 and pictures.shape[1:] == self.info.image_shape:
            return self._checked(pictures)
        if isinstance(pictures, (str, os.PathLike, Image.Image)) or (
            isinstance(pictures, np.ndarray) and pictures.ndim < 4
        ):
            pictures = [pictures]
        if not isinstance(pictures, Iterable):
            raise UserError(f"{type(pictures).__name__} is no picture: expected {WANTED}")
        images = [self._decoded(picture, self.info.image_shape) for picture in pictures]
        if not images:
            raise UserError("there is no picture")
        return np.stack(images)

    def _decoded(self, picture: Picture, shape: tuple[int, int, int]) -> np.ndarray:
        dataset, background = self.config.dataset, self.config.dataset.arguments.get("background", "white")
        make: Any = getattr(dataset.entry, "image", None)
        if make is None:
            return decoded(picture, shape, background)
        if shape == self.info.image_shape:
            return decoded(picture, shape, background, lambda pixels: make(pixels, **dataset.arguments))
        size = shape[1], shape[0]  # for the eye: all of the picture, as the network sees it
        return decoded(picture, shape, background, lambda pixels: np.asarray(Image.fromarray(pixels).resize(size)))

    def _index(self, name_or_index: str | int) -> int:
        """The index of a class. Raises `UserError`."""
        if isinstance(name_or_index, str):
            if name_or_index not in self.class_names:
                raise UserError(f"unknown class {name_or_index!r}: {nearest(name_or_index, self.class_names)}")
            return self.class_names.index(name_or_index)
        if not isinstance(name_or_index, (int, np.integer)) or isinstance(name_or_index, bool):
            raise UserError(f"class {name_or_index!r}: expected the name of a class or its index, a whole number")
        if not 0 <= name_or_index < len(self.class_names):
            raise UserError(f"class {name_or_index}: must be from 0 to {len(self.class_names) - 1}")
        return int(name_or_index)


def decoded(
    picture: Picture,
    shape: tuple[int, int, int],
    background: str = "white",
    make: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """A picture as an image, uint8 `[H, W, C]` of that shape: see `data.pictures.to_image`. Raises `UserError`.

    Args:
      picture: the name of a file, a PIL picture, or a uint8 array `[H, W]` or `[H, W, C]` with C of 1, 3 or 4 (transparency).
      shape: height, width and channels.
      background: the colour that transparent pictures are laid on.
      make: makes the image of the whole picture, uint8 `[H', W', C]`, instead.
    """
    if isinstance(picture, np.ndarray):
        if picture.dtype == np.uint8 and picture.shape == shape:
            return picture
        what = f"a picture of {picture.dtype} {list(picture.shape)}"
        plain = picture[..., 0] if picture.ndim == 3 and picture.shape[-1] == 1 else picture
        if picture.dtype != np.uint8 or not (plain.ndim == 2 or (plain.ndim == 3 and plain.shape[-1] in (3, 4))):
            raise UserError(
                f"{what}: expected uint8 of shape [H, W] or [H, W, C], with 1, 3 or 4 channels, which come last"
            )
        if not plain.size:
            raise UserError(f"{what}: it has no pixels")
        picture = Image.fromarray(plain)
    elif isinstance(picture, Image.Image):
        what = f"a picture of mode {picture.mode}"
        if not picture.width * picture.height:
            raise UserError(f"{what}, {picture.width} x {picture.height}: it has no pixels")
    elif isinstance(picture, (str, os.PathLike)):
        what, file = str(picture), expanded(picture)
        if not os.path.isfile(file):  # pathlib's raises for a name that is too long
            folder = os.path.isdir(file)
            raise UserError(f"{what}: {'is a folder; name the files in it' if folder else 'no such file'}")
    else:
        raise UserError(f"{type(picture).__name__} is no picture: expected {WANTED}")
    try:
        if not isinstance(picture, Image.Image):
            picture = open_picture(expanded(picture), FOLDER_FORMATS)
        ground = ImageColor.getrgb(background)[:3]
        if make is None:
            return to_image(picture, shape, ground)
        whole = np.asarray(upright(picture, shape[-1], ground))
        return make(whole.reshape(*whole.shape[:2], shape[-1]))
    except (MemoryError, UserError):
        raise
    except Exception as error:  # Pillow raises anything on damaged EXIF data
        why = str(error) if isinstance(error, Unreadable) else reason(error)
        raise UserError(f"{what} is not a readable picture: {why}") from error
