"""What the page takes for a picture, before a browser decodes it."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from typing import Any

import pytest
from PIL import Image

from tests.page.node import needs_node, run

FORMS: dict[str, dict[str, Any]] = {
    "png": {"format": "PNG"},
    "gif": {"format": "GIF"},
    "bmp": {"format": "BMP"},
    "jpeg": {"format": "JPEG"},
    "progressive jpeg": {"format": "JPEG", "progressive": True, "exif": b"Exif\0\0" + bytes(300)},
    "webp": {"format": "WEBP"},
    "lossless webp": {"format": "WEBP", "lossless": True},
    "webp with more": {"format": "WEBP", "exif": b"Exif\0\0" + bytes(8)},
}


def picture(width: int = 70, height: int = 41, **form: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(file, **form)
    return file.getvalue()


def bomb(side: int = 50_000) -> bytes:
    """A PNG of a few hundred bytes that says it has side x side pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


def bytes_of(argument: str) -> str:
    return f"Uint8Array.from(Buffer.from({argument}, 'base64'))"


@needs_node
def test_dimensions_are_those_of_the_header():
    """Of every kind of file that browsers decode; and of none of their beginnings more than an answer or null."""
    files = [base64.b64encode(picture(**form)).decode() for form in FORMS.values()]
    each = f"argument.map((file) => dimensions({bytes_of('file')}))"
    assert run("picture.js", each, files) == [[70, 41]] * len(FORMS)
    cut = f"argument.map((file) => {bytes_of('file')}).flatMap((b) => [...b.keys()].map((n) => dimensions(b.slice(0, n))))"
    assert {tuple(size) if size else None for size in run("picture.js", cut, files)} == {None, (70, 41)}


REFUSED = {
    "notes.png": (b"Buy milk.\n" * 50, "notes.png is not a PNG, JPEG, GIF, WebP or BMP picture."),
    "bomb.png": (bomb(), "bomb.png has 50,000 \u00d7 50,000 pixels; the most is 50 million."),
    "empty.jpg": (b"", "empty.jpg is not a PNG, JPEG, GIF, WebP or BMP picture."),
    "page.svg": (
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "page.svg is not a PNG, JPEG, GIF, WebP or BMP picture.",
    ),
}


@needs_node
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_picture_or_too_large_is_refused_in_one_line(name):
    content, line = REFUSED[name]
    argument = {"name": name, "file": base64.b64encode(content).decode()}
    expression = f"decode(new File([{bytes_of('argument.file')}], argument.name)).catch((error) => error.message)"
    assert run("picture.js", expression, argument) == line


@needs_node
def test_a_large_file_is_refused_unread():
    expression = "decode({name: 'film.png', size: 100e6}).catch((error) => error.message)"
    assert run("picture.js", expression, None) == "film.png has 100 MB; the most is 20 MB."
