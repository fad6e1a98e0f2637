"""The examples in docstrings give what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "nin_jax"
WITH_EXAMPLES = sorted(f for f in PACKAGE.rglob("*.py") if ">>> " in f.read_text())


@pytest.mark.parametrize("file", WITH_EXAMPLES, ids=lambda file: file.stem)
def test_examples(file: Path) -> None:
    module = importlib.import_module(".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts))
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed
