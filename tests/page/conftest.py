"""Two finished runs, and a server of the page of runs."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nin_jax.training import loop
from tests.tiny import tiny


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two finished runs, seed0 and seed1."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        loop.train(tiny(seed=seed), folder / f"seed{seed}")
    return folder


@pytest.fixture(scope="module")
def server(runs: Path) -> Iterator[str]:
    """The address of their page."""
    with served(runs) as address:
        yield address


@contextlib.contextmanager
def served(runs: Path) -> Iterator[str]:
    """The address of the page of the runs in a folder, served by the command itself."""
    pytest.importorskip("uvicorn")
    command = [sys.executable, "-m", "nin_jax.page.board", str(runs), "--port=0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        line = process.stderr.readline()
        found = re.search(r"\d runs on (http://127\.0\.0\.1:\d+)/", line)
        assert found, line
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield found[1]
        process.terminate()
