"""The tables of detection: what a run leaves behind, and what the page makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nin_jax.data.objects.annotations import VOC_CLASSES
from nin_jax.errors import UserError
from nin_jax.paper import detection
from nin_jax.training import fusion


def report(seed: int, argument: str, value: float, maps: float | None = None) -> dict:
    experiment = "experiments/detect_scenes.py" + (f":{argument}" if argument else "")
    place = {"network": "nin.cifar10", "asked": 10, "maps_pct": maps, "centre_pct": 5.0, "random_pct": 1.0}
    return {
        "command": f"python -m nin_jax.detection.main --config={experiment} --config.seed={seed}",
        "experiment": experiment,
        "seed": seed,
        "map_pct": value,
        "features_s_per_picture": 0.5,
        "peak_memory_mib": 400.0,
        "proposals": {"a_picture": 700.0, "recall_pct": 99.0},
        "localisation": place | {"pointing_pct": 80.0, "centre_pointing_pct": 30.0} if maps else None,
    }


def test_runs_stand_beside_the_slides_with_their_deviation(tmp_path: Path) -> None:
    runs = {"a": report(0, "", 12.0, 40.0), "b": report(1, "", 14.0, 44.0), "c": report(0, "hog", 2.5)}
    runs["same"] = report(0, "colour", 2.0)
    runs["same"]["command"] += " --config.proposals.scales=4"  # what the experiment says too
    runs["other"] = report(2, "", 99.0)
    runs["other"]["command"] += " --config.finest=0.1"
    for name, run in runs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps(run))
    detection.collect([tmp_path / name for name in runs], tmp_path / "kept")
    generated = detection.generated(detection.read(tmp_path / "kept"), {}, {})
    assert "| one network | 35.61 | 13.0 ± 1.4 (n = 2) |" in generated["Detection"]
    assert "| three networks | 36.52 | not run |" in generated["Detection"]
    assert "| gradients (hog) |  | 2.5 (n = 1) |" in generated["Detection"]
    assert "| colours |  | 2.0 (n = 1) |" in generated["Detection"]
    assert "| scenes | nin.cifar10 | 10 | 42.0 ± 2.8 (n = 2) | 5.0 ± 0.0 (n = 2) |" in generated["Localisation"]
    assert generated["Detection runs"].count("python -m nin_jax.detection.main") == 5
    assert "| plane | 97.3 | 93.5 | 94.6 | 96.8 | 98.4 | 99.5 | not run |" in generated["Slides: VOC 2012"]


def test_an_unfinished_run_is_not_recorded(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text('{"map_pct": 1.0}')
    with pytest.raises(UserError, match="is not a finished run of detection"):
        detection.collect([tmp_path], tmp_path / "kept")
    assert not list((tmp_path / "kept").glob("*.json"))


def test_hcp_on_voc_2012_stands_beside_the_slides_once_it_is_recorded(tmp_path: Path) -> None:
    labels = np.where(np.random.default_rng(0).random((detection.VAL_2012, 20)) < 0.2, 1, -1).astype(np.int32)
    scores = labels.astype(np.float64)
    scores[:, 19] = 0.5 * scores[::-1, 19]  # a classifier of tvmonitor that knows nothing
    fusion.write(tmp_path / "val.json", fusion.Scores(VOC_CLASSES, scores, labels))
    assert detection.read_one(tmp_path / "record.json") == {}
    detection.collect_hcp(tmp_path / "val.json", tmp_path / "record.json")
    kept = detection.read_one(tmp_path / "record.json")
    table = detection.generated([], kept, {})["Slides: VOC 2012"]
    assert "| plane | 97.3 | 93.5 | 94.6 | 96.8 | 98.4 | 99.5 | 100.0 |" in table
    assert 15 < kept["tvmonitor"] < 25
    assert f"| {(1900 + kept['tvmonitor']) / 20:.1f} |" in table.splitlines()[-1]
    fusion.write(tmp_path / "sample.json", fusion.Scores(VOC_CLASSES, scores[:160], labels[:160]))
    with pytest.raises(UserError, match="has 160 pictures of 20 classes; VOC 2012"):
        detection.collect_hcp(tmp_path / "sample.json", tmp_path / "record.json")
