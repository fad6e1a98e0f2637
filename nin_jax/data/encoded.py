"""A split of encoded pictures of any size; each is read, checked, decoded and cropped when it is needed."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from nin_jax.console import say
from nin_jax.data import views
from nin_jax.data.pictures import FORMATS, STREAMED_PIXELS, reason
from nin_jax.data.worker import map_threads
from nin_jax.errors import ExitError, UserError


@dataclasses.dataclass(frozen=True)
class Pictures:
    """A split of encoded pictures.

    Attributes:
      name: for messages, such as "imagenet2012 train".
      records: random access: item i has "image" (encoded bytes) and "label" (int).
      classes: labels are 0 to classes - 1.
      short: pixels that the short side is scaled to.
      size: pixels, height and width of what the network sees.
      skip: whether bad records are named in a line and left out instead of ending the run. In training the next usable
        record takes the place, in evaluation none does.
      named: the records reported as left out, each once in a process.
    """

    name: str
    records: Sequence[Any]
    classes: int
    short: int
    size: int
    skip: bool = False
    named: set[int] = dataclasses.field(default_factory=set, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.records)

    def open(self, index: int) -> tuple[bytes, tuple[int, int], str, int]:
        """An encoded picture, its height and width, its colours, and its label. Raises `UserError`."""
        try:
            record = self.records[index]
            data, label = record["image"], int(record["label"])
            if data.startswith(b"\xff\xd8"):
                height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            else:
                picture = Image.open(io.BytesIO(data), formats=FORMATS)
                height, width, colours = picture.height, picture.width, picture.mode
        except ExitError:
            raise
        except Exception as error:  # the reader is native code and raises anything on a damaged file
            raise UserError(f"record {index} of {self.name} cannot be read: {reason(error)}") from error
        height, width = int(height), int(width)
        if height * width > STREAMED_PIXELS:
            raise UserError(f"record {index} of {self.name}: {width} x {height} pixels are more than {STREAMED_PIXELS}")
        if not 0 <= label < self.classes:
            raise UserError(f"record {index} of {self.name}: label {label} is not between 0 and {self.classes - 1}")
        return data, (height, width), colours, label

    def decode(self, index: int) -> tuple[Image.Image | np.ndarray, tuple[int, int], int]:
        """A decoded picture, height and width to scale it to, and its label. Raises `UserError`.

        simplejpeg gives the same pixels as Pillow, faster. For a JPEG at least four times as large as wanted, Pillow
        has libjpeg decode a smaller version, still at least twice as large. A picture that needs no scaling is an
        array.
        """
        data, size, colours, label = self.open(index)
        to = views.scaled(*size, self.short)
        try:
            if colours in ("YCbCr", "Gray") and min(a // b for a, b in zip(size, to, strict=True)) < 4:
                with contextlib.suppress(ValueError):  # also for what libjpeg only warns of: then Pillow decides
                    pixels = simplejpeg.decode_jpeg(data, "RGB")
                    return pixels if size == to else Image.fromarray(pixels), to, label
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
            picture.draft("RGB", (2 * to[1], 2 * to[0]))
            picture.load()
            return picture if picture.mode == "RGB" else picture.convert("RGB"), to, label
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(f"record {index} of {self.name} cannot be decoded: {reason(error)}") from error

    def usable(self, index: int) -> tuple[Image.Image | np.ndarray, tuple[int, int], int] | None:
        """Like `decode`, but None for a record that is left out."""
        try:
            return self.decode(index)
        except UserError as error:
            self.leave_out(index, error)
            return None

    def leave_out(self, index: int, error: UserError) -> None:
        """Reports that a record is left out, if the config says so; otherwise raises `error`, which names it."""
        if not self.skip:
            raise error
        if index not in self.named:
            self.named.add(index)
            say(f"warning: {error}; left out")

    def usable_from(self, index: int) -> tuple[Image.Image | np.ndarray, tuple[int, int], int]:
        """The first usable record from this one on, wrapping around. Raises `UserError` if there is none."""
        for i in (*range(index, len(self)), *range(index)) if self.skip else (index,):
            if (found := self.usable(i)) is not None:
                return found
        raise UserError(f"no record of {self.name} can be used")

    def sample(self, number: int) -> np.ndarray:
        """The central windows of that many records, evenly spread over the split, uint8 `[N, size, size, 3]`."""

        def central(index: int) -> np.ndarray:
            picture, to, _ = self.usable_from(index)
            return cut(picture, to, views.windows("center", *to, self.size)[0])

        chosen = np.unique(np.linspace(0, len(self) - 1, min(number, len(self))).astype(int)).tolist()
        return np.stack(list(map_threads(central, chosen, len(chosen), f"looking at {len(chosen)} of {self.name}")))


def cut(picture: Image.Image | np.ndarray, to: tuple[int, int], window: views.Window) -> np.ndarray:
    """A window of a decoded picture scaled to height and width `to`, uint8 `[height, width, 3]`.

    Only what the window shows is scaled, with the same result as for the whole picture: bilinear with antialiasing,
    each pixel averaging all that it covers.
    """
    y, x, height, width = window
    if isinstance(picture, np.ndarray):
        return picture[y : y + height, x : x + width]
    a, b = picture.height / to[0], picture.width / to[1]
    box = (x * b, y * a, min((x + width) * b, picture.width), min((y + height) * a, picture.height))
    return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR, box))
