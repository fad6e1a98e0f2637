"""Every constant that was measured on a CPU rather than derived. Rows refer to docs/performance.md, "Changes"."""

from __future__ import annotations

import jax

# The convolution theorem from this many images and input channels on, patches below. Rows "5x5 convolution, 96 to 192 maps of
# 16x16" and "3x3 convolution, 192 to 192 maps of 8x8": 2.6 and 1.06 times as fast as patches on AVX2, 4.9 and 2.2 on AVX-512.
THEOREM_IMAGES, THEOREM_CHANNELS = 8, 16

# Parts that the sum over all positions in the gradient of a 1x1 kernel is cut into. Row "1x1 convolution, 192 to 160 maps
# of 32x32", "one product, the kernel's gradient in halves": 1.36 times as fast as in one.
KERNEL_GRADIENT_PARTS = 2

# An evaluation computes a few images at a time: positions (images x height x width) of a piece, least and most, which keep
# its maps in 2 MB of cache a core, and bytes of a map of all images below which it is not worth it. Rows "an evaluation's
# first block" and "second block": 1.3 and 1.1 times as fast as all images at once.
PIECE_POSITIONS = 2**13, 2**14
PIECES_FROM_BYTES = 2**25


def frequency_groups(images: int) -> int:
    """How many groups the frequencies of the convolution theorem are cut into.

    XLA of jax 0.10 computes a batch of small products on one core, but several batches side by side: rows "the theorem,
    frequencies in groups". From 256 images on the products are large enough, and jax 0.12 needs no groups.
    """
    return 3 if images < 256 and jax.__version_info__ < (0, 12) else 1
