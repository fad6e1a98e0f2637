"""A run that diverges goes back to its newest good checkpoint with a lower rate, as often as the config allows."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import nin_jax
from nin_jax import main
from nin_jax.errors import Diverged, UserError
from nin_jax.runs import checkpoint, rollback
from nin_jax.training.programs import Programs
from tests.faults import harness

EXPLODES = {"schedule.factor": 1e20}  # after the second epoch: the loss is not finite at update 22 or so


def train(workdir: Path, **changes: Any) -> dict[str, Any]:
    """The command in this process; the summary."""
    main.run(main.parse(["nin_jax", *harness.words(workdir, **changes)]))
    return json.loads((workdir / "summary.json").read_text())


@pytest.mark.slow
def test_a_rollback(tmp_path: Path, tally: Counter[str], capsys: pytest.CaptureFixture[str]) -> None:
    """It ends as the run does that had the lower rate all along, each row once; the summary says what happened."""
    summary = train(tmp_path / "run", rollbacks=1, rollback_factor=1e-21, **EXPLODES)
    (entry,) = summary["rollbacks"]
    assert (entry["to"], entry["factor"]) == (20, 1e-21)
    assert 20 < entry["update"] <= 30
    assert "rollback 1 of 1: back to step 20, with 1e-21 times the learning rate" in capsys.readouterr().err
    train(tmp_path / "wanted", **{"schedule.factor": 0.1})
    one, other = (nin_jax.load_run(str(tmp_path / name)).params for name in ("run", "wanted"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one, other)
    assert [r["step"] for r in harness.rows(tmp_path / "run")] == [r["step"] for r in harness.rows(tmp_path / "wanted")]
    assert [r["learning_rate"] for r in harness.rows(tmp_path / "run")[4:]] == pytest.approx([0.005] * 4)
    tally["went on from the newest good step, to the end"] += 1


@pytest.mark.slow
def test_no_rollback_is_left(tmp_path: Path, tally: Counter[str]) -> None:
    """Exit 70 after as many as were allowed; the good checkpoints are there, and a later start may allow more."""
    for allowed in (0, 2):
        with pytest.raises(Diverged, match=r"loss is (nan|inf) at update 2|parameters after update 30 are not finite"):
            train(tmp_path, rollbacks=allowed, **EXPLODES)
        assert len(rollback.read(tmp_path)) == allowed
        assert harness.steps(tmp_path) == [10, 20]
        assert json.loads((tmp_path / "summary.json").read_text())["status"] == "diverged"
    assert [e["factor"] for e in train(tmp_path, rollbacks=3, rollback_factor=1e-21, **EXPLODES)["rollbacks"]] == [
        *(0.5, 0.5),
        1e-21,
    ]
    tally["exit 70, good checkpoints kept"] += 2


def test_a_divergence_before_the_first_checkpoint(tmp_path: Path, tally: Counter[str]) -> None:
    """Step 0 is always good."""
    summary = train(tmp_path, epochs=1, rollbacks=2, rollback_factor=1e-20, **{"optimizer.learning_rate": 1e20})
    assert {e["to"] for e in summary["rollbacks"]} == {0}
    tally["started again at step 0"] += 1


def test_parameters_that_are_not_finite_are_never_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tally: Counter[str]
) -> None:
    """They become so by the last update of an epoch, after its loss was seen: exit 70, and the last good one is kept.

    Evaluated, such a network may have a loss like any other: max pooling and ReLU pass no NaN on.
    """
    real = Programs.updates

    def spoilt(self: Programs, n: int) -> Any:
        def update(state: Any, data: Any) -> Any:
            state, metrics = real(self, n)(state, data)
            if int(state.step) == 30:
                state = state.replace(params=jax.tree.map(lambda a: a * np.float32("nan"), state.params))
            return state, metrics

        return update

    monkeypatch.setattr(Programs, "updates", spoilt)
    with pytest.raises(Diverged, match="the parameters after update 30 are not finite"):
        train(tmp_path, keep=1)
    assert harness.steps(tmp_path)[-1] == 20
    tally["exit 70, the one before kept"] += 1


def test_checkpoints_of_a_dead_network_are_gone_behind(tmp_path: Path) -> None:
    """Those that were saved while every logit was constant."""
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=9)
    for step, healthy in ((1, True), (2, True), (3, False), (4, False)):
        checkpoints.save(step, {"w": jax.numpy.arange(3.0)}, {"healthy": healthy})
    checkpoints.wait()
    assert checkpoints.drop_while(lambda notes: not notes["healthy"]) == 2
    checkpoints.close()
    assert harness.steps(tmp_path) == [1, 2]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"factor": 0, "to": 1}]', '[{"factor": 9, "to": 1}]', "[" * 9999])
def test_a_broken_list_of_rollbacks(text: str, tmp_path: Path) -> None:
    """It decides on the rate, so it is a mistake to go on without it."""
    (tmp_path / "rollbacks.json").write_text(text)
    if text == "{}":
        assert rollback.read(tmp_path) == {}
    else:
        with pytest.raises(UserError, match=r"rollbacks\.json cannot be read"):
            rollback.read(tmp_path)


@pytest.mark.skipif(not harness.FULL, reason="in the campaign")
@pytest.mark.parametrize("at", ["Checkpoints.delete", "write_json", "write_json after"])
def test_a_kill_during_a_rollback(at: str, tmp_path: Path, tally: Counter[str]) -> None:
    """The next start ends up at the same rollback, and in the same run."""
    changes = {"rollbacks": 1, "rollback_factor": 1e-21, **EXPLODES}
    calm = harness.run(harness.words(tmp_path / "calm", **changes))  # compiled as the others are
    assert calm.code == 0, calm.err
    name, call = {
        "Checkpoints.delete": ("nin_jax.runs.checkpoint:Checkpoints.drop_while", 1),
        "write_json": ("nin_jax.storage:write_json", 3),  # after config.json and the summary that says "diverged"
        "write_json after": ("nin_jax.runs.rollback:say", 1),
    }[at]
    hook = {"at": name, "call": call, "do": "signal", "number": 9}
    ended = harness.run(harness.words(tmp_path / "run", **changes), hook)
    assert ended.code == -9, ended.err
    harness.assert_resumes(tmp_path / "run", tmp_path / "calm", **changes)
    tally["bit-equal"] += 1
