"""Pictures from outside: JPEG, PNG and WebP alone, of a bounded number of pixels, and whatever is wrong with one is one error."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP")  # what TFDS's layout holds: WebP is the smaller of the two that lose nothing
PIXELS = 50_000_000  # a larger picture is refused before it is decoded: a small file can unpack to gigabytes

STREAMED_PIXELS = 150_000_000  # the same where few are in memory at a time: photographs as cameras make them

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # PIXELS is lower


class Unreadable(ValueError):
    """A picture that cannot be used, and why."""


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
        raise Unreadable(" ".join(str(error).split()) or type(error).__name__) from error
