"""TensorBoard's events cost a run no import of PyTorch; what is in them is tested with the loop."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tensorboardX")
pytest.importorskip("torch")
CODE = """
import sys
from pathlib import Path
from nin_jax.runs.tensorboard import TensorBoard
events = TensorBoard(Path(sys.argv[1]), 1)
events.write({"step": 1, "epoch": 1, "split": "train", "loss": 0.5})
events.close()
assert sys.modules.keys().isdisjoint({"torch", "tensorboardX"})
import tensorboardX.x2num, torch
assert (tensorboardX.x2num.make_np(torch.ones(2)) == 1).all()
"""


def test_pytorch_is_not_imported_and_is_there_for_others(tmp_path: Path) -> None:
    """Of the same process: its own tensorboardX takes PyTorch's tensors."""
    done = subprocess.run([sys.executable, "-c", CODE, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("events*"))
