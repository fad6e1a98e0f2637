"""Pictures from outside: encoded files of known formats, of a bounded number of pixels; whatever is wrong with one is one error.

In this package a picture is a user's encoded file or record, an image the array of pixels that a network is shown.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from pathlib import Path

from PIL import Image

from nin_jax.errors import one_line

FORMATS = ("JPEG", "PNG", "WEBP")  # those of TFDS's layout: WebP is the smaller of the two that lose nothing
PIXELS = 50_000_000  # a larger picture is refused before it is decoded: a small file can unpack to gigabytes
STREAMED_PIXELS = 150_000_000  # the same where few are in memory at a time: photographs as cameras make them


class Unreadable(ValueError):
    """A picture that cannot be used, and why."""


def reason(error: Exception) -> str:
    """What a decoder says, in one line, without the addresses in memory of what it read."""
    return re.sub(r" <_io\.BytesIO object at \w+>", "", one_line(error))


def open_picture(source: Path | bytes) -> Image.Image:
    """The decoded picture in a file or in bytes, as it is stored. Raises `Unreadable`, and nothing else for its content."""
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as picture:
            if picture.width * picture.height > PIXELS:
                raise Unreadable(f"{picture.width} x {picture.height} pixels are more than {PIXELS}")
            picture.load()
            return picture
    except Unreadable:
        raise
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        raise Unreadable(reason(error)) from error
