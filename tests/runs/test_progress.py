"""What a checkpoint notes of its run comes back as it was."""

from __future__ import annotations

import json

import pytest

from nin_jax import config
from nin_jax.data.splits import Info
from nin_jax.runs.progress import Progress

INFO = Info("synthetic", 10, (8, 8, 1), {"train": 320}, "made")


def test_notes_come_back():
    """Through JSON, with the seconds of the moment; a run that begins has none."""
    progress = Progress(1 / 3, 0.1, 7, (0, 3, 51), {"train": 1.0})
    notes = json.loads(json.dumps(progress.notes({"train": 2.5}, config.default(), "320 examples", INFO)))
    assert Progress.of(notes) == Progress(1 / 3, 0.1, 7, (0, 3, 51), {"train": 2.5})
    assert notes["data"] == "320 examples"
    assert Progress.of({}) == Progress()


@pytest.mark.parametrize(("constant_for", "healthy"), [((), True), ((1, 0), True), ((1, 9), False)])
def test_a_checkpoint_is_healthy_unless_every_logit_was_constant(constant_for, healthy):
    assert Progress(constant_for=constant_for).notes({}, config.default(), "", INFO)["healthy"] is healthy


def test_a_row_ends_the_sums_and_nothing_else():
    progress = Progress(3.0, 0.5, 2, (0, 3), {"train": 1.0})
    assert progress.means() == {"loss": 1.5, "error_pct": 25.0}
    assert progress.after_row() == Progress(constant_for=(0, 3), seconds={"train": 1.0})
