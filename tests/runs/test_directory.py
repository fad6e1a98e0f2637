"""Whose a run directory is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nin_jax import main
from nin_jax.errors import UserError
from nin_jax.runs.directory import claim
from tests.faults import harness


def config(**changes: object) -> main.Config:
    return main.parse(["nin_jax", *harness.words("unused", **changes)]).config


def test_a_mistake_claims_no_directory(tmp_path: Path) -> None:
    """Mistyped, corrected, started: what ended before its first update leaves the directory to nobody."""
    workdir = tmp_path / "run"
    with claim(workdir, config(eval_split="tset", batch_size=16)):
        (workdir / "preprocess.npz").touch()
        (workdir / "metrics.jsonl").touch()
        (workdir / "checkpoints").mkdir()
    with claim(workdir, config()):
        assert not (workdir / "preprocess.npz").exists()  # fitted for another config
    assert json.loads((workdir / "config.json").read_text())["eval_split"] == "test[:72]"


def test_preprocessing_of_a_mistaken_data_dir_is_not_kept(tmp_path: Path) -> None:
    """`data_dir` may change between two starts of a run, but what was fitted before its first update was to other data."""
    for data, kept in (("first", False), ("first", True), ("second", False)):
        with claim(tmp_path, config(data_dir=data)):
            assert (tmp_path / "preprocess.npz").exists() == kept
            (tmp_path / "preprocess.npz").touch()


@pytest.mark.parametrize(
    "left", ["checkpoints/10/notes.json", "checkpoints/broken-10/notes.json", "metrics.jsonl", "summary.json"]
)
def test_what_was_trained_claims_it(left: str, tmp_path: Path) -> None:
    with claim(tmp_path, config(seed=1)):
        (tmp_path / "preprocess.npz").touch()
        (tmp_path / left).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / left).write_text("{}")
    with pytest.raises(UserError, match=r"another config \(seed: 1, now 0\)"), claim(tmp_path, config()):
        pass
    with claim(tmp_path, config(seed=1)):
        assert (tmp_path / "preprocess.npz").exists()
