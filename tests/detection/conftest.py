"""Real pictures with boxes, where they are at hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def voc_sample() -> Path:
    """The folder VOC2007 of 320 real pictures that NIN_JAX_VOC names."""
    folder = os.environ.get("NIN_JAX_VOC")
    if not folder:
        pytest.skip("real pictures with boxes: NIN_JAX_VOC=.../VOCdevkit/VOC2007")
    return Path(folder)
