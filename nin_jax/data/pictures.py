"""Pictures from outside: encoded files of known formats with a bounded number of pixels. Whatever is wrong is one error.

In this package a picture is a user's encoded file or record, an image the array of pixels that a network is shown.
"""

from __future__ import annotations

import io
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from nin_jax.errors import one_line

FORMATS = ("JPEG", "PNG", "WEBP")  # those of TFDS's layout: WebP is the smaller of the two that lose nothing
# Those of a user's own files. All are told by their first bytes, and none makes Pillow start another program, as EPS does.
FOLDER_FORMATS = (*FORMATS, "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO")
SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"),
    *(".ico", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
}
LIKE_PICTURES = {  # what else cameras, phones and drawing programs write
    *(".heic", ".heif", ".hif", ".jxl", ".svg", ".svgz", ".psd", ".xcf", ".tga", ".pcx", ".eps", ".dds", ".exr"),
    *(".hdr", ".pfm", ".dcm", ".fits", ".emf", ".wmf", ".xpm", ".xbm", ".qoi", ".icns", ".avifs"),
    *(".dng", ".raw", ".arw", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".srw", ".x3f"),
    *(".3fr", ".iiq"),
}
BEGINNINGS = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|RIFF....WEBP|II\*\0|MM\0\*|....ftyp(avif|heic|heix|mif1)", re.DOTALL
)

WHITE = (255, 255, 255)  # what transparent pictures are laid on, unless something else is asked for
PIXELS = 50_000_000  # a larger picture is refused before it is decoded: a small file can unpack to gigabytes
STREAMED_PIXELS = 150_000_000  # the same where few are in memory at a time: photographs as cameras make them


class Unreadable(ValueError):
    """A picture that cannot be used, and why."""


def reason(error: Exception) -> str:
    """A decoder's message in one line, without memory addresses."""
    return re.sub(r" <_io\.BytesIO object at \w+>", "", one_line(error))


def starts_like_a_picture(file: Path) -> bool:
    """Whether the first bytes are those of a picture, whatever its name."""
    try:
        with file.open("rb") as f:
            return BEGINNINGS.match(f.read(16)) is not None
    except OSError:
        return False


def open_picture(source: Path | bytes, formats: tuple[str, ...] = FORMATS, *, pixels: bool = True) -> Image.Image:
    """The picture in a file or in bytes, as it is stored; of an animation the first frame.

    Raises `Unreadable`, and nothing else for its content. Without `pixels` only its header is read.
    """
    if isinstance(source, Path) and source.is_symlink() and not source.exists():
        raise Unreadable(f"it is a link to {os.readlink(source)}, which is not there")
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats) as picture:
            if picture.width * picture.height > PIXELS:
                raise Unreadable(f"{picture.width} x {picture.height} pixels are more than {PIXELS}")
            if pixels:
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


def to_picture(image: np.ndarray) -> Image.Image:
    """An image uint8 `[H, W, C]` as a picture; of grey ones, C is 1."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def to_image(picture: Image.Image, shape: tuple[int, int, int], background: tuple[int, int, int]) -> np.ndarray:
    """A picture as a network sees it, uint8 `[H, W, C]` of that shape.

    It is made `upright`, scaled (bilinear with antialiasing) until it just covers the shape, and cropped to the centre.
    """
    height, width, channels = shape
    fitted = ImageOps.fit(upright(picture, channels, background), (width, height), Image.Resampling.BILINEAR)
    return np.asarray(fitted, np.uint8).reshape(shape)


def upright(picture: Image.Image, channels: int, background: tuple[int, int, int]) -> Image.Image:
    """A picture turned upright as its EXIF data say, grey (`channels` is 1) or red, green, blue (3).

    It is laid on the background colour where it is transparent. Raises `Unreadable`.
    """
    try:
        upright = ImageOps.exif_transpose(picture)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises anything on damaged EXIF data
        raise Unreadable(reason(error)) from error
    if upright.mode.startswith("I;16") or (upright.mode == "I" and picture.format == "PPM"):
        wide, clear = np.asarray(upright), upright.info.get("transparency")
        upright = Image.fromarray((wide >> 8).astype(np.uint8))  # convert would clip at 255
        if clear is not None:  # the number of a grey, which would be lost
            upright.putalpha(Image.fromarray(np.where(wide == clear, 0, 255).astype(np.uint8)))
    elif _is_of_32_bits(picture):
        raise Unreadable(
            f"its pixels are 32-bit numbers (mode {upright.mode}), and nothing says which are black and white"
        )
    if upright.has_transparency_data:
        ground = Image.new("RGBA", upright.size, (*background, 255))
        upright = Image.alpha_composite(ground, upright.convert("RGBA"))
    return upright.convert("L" if channels == 1 else "RGB")


def _is_of_32_bits(picture: Image.Image) -> bool:
    """Whether nothing says which of its numbers is white; Pillow reads PPM of 16 bits as 32."""
    return picture.mode == "F" or (picture.mode == "I" and picture.format != "PPM")


KINDS = ("colour", "grey", "transparent", "unreadable")


def look(source: Path) -> tuple[int, int, str]:
    """Width, height and kind (of `KINDS`) of a picture, by its header and, where it has one, its transparency."""
    try:
        picture = open_picture(source, FOLDER_FORMATS, pixels=False)
        if picture.has_transparency_data:
            alpha = open_picture(source, FOLDER_FORMATS).convert("RGBA").getchannel("A")
            if np.asarray(alpha).min() < 255:
                return *picture.size, "transparent"
        if _is_of_32_bits(picture):
            return 0, 0, "unreadable"
        grey = picture.mode in ("1", "L", "LA", "I") or "I;16" in picture.mode
        return *picture.size, "grey" if grey else "colour"
    except Exception:  # Pillow raises anything on damaged data; decoding says what is wrong
        return 0, 0, "unreadable"
