"""Makes a folder as it comes from cameras, phones and a drawing program, for docs/own_pictures.md.

    python -m tests.own_pictures FOLDER

Three classes of shapes on photographs of noise: FOLDER/cross, FOLDER/disc, FOLDER/ring.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

PICTURES = 60  # of each class


def shape(kind: str, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """A dark shape near the centre, on nothing."""
    picture = Image.new("RGBA", size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(picture)
    radius = min(size) * rng.uniform(0.28, 0.36)
    x, y = (side / 2 + rng.uniform(-0.08, 0.08) * min(size) for side in size)
    colour = tuple(int(c) for c in rng.integers(0, 60, 3))
    box, width = (x - radius, y - radius, x + radius, y + radius), max(1, int(radius / 3))
    if kind == "disc":
        draw.ellipse(box, fill=colour)
    elif kind == "ring":
        draw.ellipse(box, outline=colour, width=width)
    else:
        draw.line(box, fill=colour, width=width)
        draw.line((box[0], box[3], box[2], box[1]), fill=colour, width=width)
    return picture


def photograph(kind: str, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    ground = Image.fromarray(rng.integers(90, 166, (size[1] // 8, size[0] // 8, 3), np.uint8)).resize(size)
    ground.paste(drawn := shape(kind, size, rng), mask=drawn)
    return ground


def main(root: Path) -> None:
    rng = np.random.default_rng(0)
    for kind in ("cross", "disc", "ring"):
        (root / kind).mkdir(parents=True)
        for i in range(PICTURES):
            picture = photograph(kind, (160, 120), rng)
            match i % 6:
                case 0:  # a phone held upright writes the picture lying on its side, and says so
                    exif = Image.Exif()
                    exif[0x0112] = 6
                    picture.save(root / kind / f"IMG_{i:04}.JPG", exif=exif)
                case 1:
                    shape(kind, (96, 96), rng).save(root / kind / f"drawn {i}.png")
                case 2:
                    picture.save(root / kind / f"download_{i}.webp")
                case _:
                    picture.save(root / kind / f"DSC_{i:04}.jpg")
        (root / kind / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (root / "disc" / "IMG_0061.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (root / "@eaDir").mkdir()
    (root / "@eaDir" / "SYNOPHOTO_THUMB_M.jpg").write_bytes(b"\xff\xd8\xff\xe0")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
