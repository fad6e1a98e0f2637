"""kill -9 in each stage of detection, and in HCP's training: what is started again ends with the very same numbers."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.faults import harness
from tests.training.test_hcp import words as hcp_words

DETECTION = (
    "--config=experiments/detect_scenes.py",
    "--config.scenes.dataset=digits",
    "--config.scenes.side=24",
    "--config.scenes.smallest=1.0",
    "--config.scenes.train=16",
    "--config.scenes.test=8",
    "--config.networks=('nin.digits',)",
    "--config.maps=('cccp2',)",
    "--config.localise=nin.digits",
    "--config.fewest_boxes=2",
    "--config.proposals.smallest=0.3",
    "--config.proposals.scales=2",
    "--config.context=True",
)
# The stages of detection in their order: a function of each, and the call that is the last.
STAGES = {
    "class maps": ("nin_jax.detection.localise:dense_maps", 3),
    "proposals": ("nin_jax.data.objects.proposals:sliding_windows", 3),
    "features": ("nin_jax.detection.features:Extractor.__call__", 9),
    "classifiers": ("nin_jax.detection.svm:train", 2),
    "regression": ("nin_jax.detection.svm:regress", 2),
    "context": ("nin_jax.detection.context:outputs", 1),
    "scores": ("nin_jax.detection.svm:suppressed", 5),
    "evaluation": ("nin_jax.detection.pipeline:precision_recall", 3),
    "report": ("nin_jax.storage:write_json", 3),
}
QUICK = ("features", "regression", "report")  # what is killed outside of the campaign
TIMINGS = {"seconds", "features_s_per_picture", "peak_memory_mib"}


def numbers(workdir: Path) -> tuple[Any, Any, dict[str, bytes]]:
    """The report without its timings, every detection, and what was learned."""
    report = json.loads((workdir / "report.json").read_text())
    with np.load(workdir / "detector.npz") as arrays:
        learned = {name: arrays[name].tobytes() for name in arrays}
    kept = {key: value for key, value in report.items() if key not in TIMINGS}
    return kept, json.loads((workdir / "detections.json").read_text()), learned


@pytest.mark.slow
def test_detection_killed_in_every_stage(tmp_path: Path, tally: Counter[str]) -> None:
    """One run, killed in one stage after the other (the campaign has them all): each start goes on, and the last one ends as a run without a kill."""
    module = "nin_jax.detection.main"
    killed, calm = tmp_path / "killed", tmp_path / "calm"
    for stage in STAGES if harness.FULL else QUICK:
        at, call = STAGES[stage]
        hook = {"at": at, "call": call, "do": "signal", "number": 9}
        ended = harness.run([*DETECTION, f"--workdir={killed}"], hook, module=module)
        assert ended.code == -9, f"{stage}: {ended.err}"
        assert not (killed / "report.json").exists()
        tally[f"killed: {stage}"] += 1
    for workdir in (killed, calm):
        ended = harness.run([*DETECTION, f"--workdir={workdir}"], module=module)
        assert ended.code == 0, ended.err
        assert ended.clean(), ended.err
    assert numbers(killed) == numbers(calm)
    tally["runs that ended bit-equal"] += 1


@pytest.mark.slow
def test_hcp_killed(tmp_path: Path, tally: Counter[str]) -> None:
    """Between two checkpoints of its training on hypotheses: parameters, rows and mAP end bit for bit as without a kill."""
    killed, calm = (hcp_words(tmp_path / name, bags=True)[1:] for name in ("killed", "calm"))
    hook = {"at": "nin_jax.training.loop:Event.AFTER_UPDATES", "call": 8, "do": "signal", "number": 9}
    ended = harness.run(killed, hook)
    assert ended.code == -9, ended.err
    assert harness.steps(tmp_path / "killed")[0] == 3, "no checkpoint to go on from"
    for arguments in (killed, calm):
        ended = harness.run(arguments)
        assert ended.code == 0, ended.err
        assert ended.clean(), ended.err
    assert harness.final_state(tmp_path / "killed") == harness.final_state(tmp_path / "calm")
    assert harness.rows(tmp_path / "killed") == harness.rows(tmp_path / "calm")
    ends = [json.loads((tmp_path / name / "summary.json").read_text())["test_map_pct"] for name in ("killed", "calm")]
    assert ends[0] == ends[1]
    tally["killed, then bit-equal"] += 1
