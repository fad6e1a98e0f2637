"""Which windows of a picture a network sees: the evaluation protocols, by name.

A picture of ImageNet or of a folder is scaled until its short side is `short` pixels ("256xN" is short=256). `size` is that of the network's input.

center   the window in the middle; images that have the network's own size, as CIFAR-10's, are seen whole
mirror   center, and its mirror image
10-crop  the four corners and the middle of the central short x short square, and their mirror images (Krizhevsky 2012)
3-view   three windows along the long side, at both ends and in the middle (slides, "3 view test")
dense    the whole picture, through a network that is convolutional up to its global pooling. The long side is cut,
         equally at both ends, to a multiple of 64 pixels and at most four times the short side, so that the network
         is not compiled for every size of picture.
"""

from __future__ import annotations

from collections.abc import Sequence

NAMES = ("center", "mirror", "10-crop", "3-view", "dense")
MIRRORED = ("mirror", "10-crop")
WHOLE = ("center", "mirror")  # those for images of the network's own size
GRID, LONGEST = 64, 4

Window = tuple[int, int, int, int]  # top, left, height, width in the scaled picture


def scaled(height: int, width: int, short: int) -> tuple[int, int]:
    """Height and width of a picture scaled to that short side; the long one is rounded to whole pixels."""
    if height <= width:
        return short, max(short, round(width * short / height))
    return max(short, round(height * short / width)), short


def windows(name: str, height: int, width: int, size: int) -> list[Window]:
    """The windows of a protocol in a scaled picture, without mirror images; all are of one size."""
    y, x = (height - size) // 2, (width - size) // 2
    short = min(height, width)
    match name:
        case "center" | "mirror":
            places = [(y, x)]
        case "3-view":
            places = [(y, 0), (y, x), (y, width - size)] if height <= width else [(0, x), (y, x), (height - size, x)]
        case "10-crop":
            top, left, end = (height - short) // 2, (width - short) // 2, short - size
            places = [(top + a, left + b) for a, b in ((0, 0), (0, end), (end, 0), (end, end), (end // 2, end // 2))]
        case "dense":
            h, w = (min(a // GRID * GRID, LONGEST * short) if a > short else short for a in (height, width))
            return [((height - max(h, short)) // 2, (width - max(w, short)) // 2, max(h, short), max(w, short))]
        case _:
            raise ValueError(name)
    return [(a, b, size, size) for a, b in places]


def random_window(uniform: Sequence[float], height: int, width: int, size: int) -> Window:
    """A window of a scaled picture, placed by two numbers uniform on [0, 1): every place is equally likely."""
    y, x = (int(u * (side - size + 1)) for u, side in zip(uniform, (height, width), strict=True))
    return y, x, size, size
