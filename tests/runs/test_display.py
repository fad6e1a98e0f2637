"""What a run shows: rows, how far it is, and the time left."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest

from nin_jax import console
from nin_jax.runs import display
from nin_jax.runs.display import Display
from tests.terminal import terminal


def rows(epoch: int, split: str = "test", **others: float) -> list[dict[str, Any]]:
    either = {"step": 10 * epoch, "epoch": epoch, "learning_rate": 0.05 / epoch, "images_per_s": 12345.6}
    return [
        either | {"split": "train", "loss": 2.25, "error_pct": 81.5},
        either | {"split": split, "loss": 2.125, "error_pct": 9.75} | others,
    ]


@pytest.mark.parametrize("split", ["test", "validation"])
def test_a_terminal_gets_one_aligned_row_an_epoch(split: str) -> None:
    """Training and evaluation side by side under one head; the row of an epoch without evaluation leaves its cells empty."""
    shown = Display(lambda **_: None, split, epochs=12, last=120, batch_size=32)
    with terminal() as stream:
        for epoch, lines in (1, 0), (2, 2), (12, 3):
            train, evaluated = rows(epoch, split)
            shown.row(train)
            if epoch != 2:
                shown.row(evaluated)
            assert len(stream.getvalue().splitlines()) == lines
            shown.end_epoch()
    head, *lines = stream.getvalue().splitlines()
    short = {"test": "test", "validation": "val"}[split]
    assert " ".join(head.split()) == f"epoch rate train loss train err% {short} loss {short} err% images/s"
    assert [line.split() for line in lines] == [
        ["1/12", "0.05", "2.2500", "81.50", "2.1250", "9.75", "12,346"],
        ["2/12", "0.025", "2.2500", "81.50", "12,346"],
        ["12/12", "0.004167", "2.2500", "81.50", "2.1250", "9.75", "12,346"],
    ]
    assert {len(line) for line in (head, *lines)} == {len(head)}
    assert len(head) <= 80


def test_other_figures_of_an_evaluation_come_last() -> None:
    shown = Display(lambda **_: None, "test", epochs=1, last=10, batch_size=32)
    with terminal() as stream:
        for row in rows(1, top5_error_pct=4.5):
            shown.row(row)
        shown.end_epoch()
    assert stream.getvalue().endswith("12,346  top5_error 4.50\n")


def test_elsewhere_rows_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Display(lambda **_: None, "test", epochs=1, last=10, batch_size=32)
    for row in rows(1):
        shown.row(row)
    shown.end_epoch()
    assert capsys.readouterr().err.splitlines() == [
        "epoch 1, step 10, train: learning_rate 0.05, images_per_s 1.235e+04, loss 2.25, error_pct 81.5",
        "epoch 1, step 10, test: learning_rate 0.05, images_per_s 1.235e+04, loss 2.125, error_pct 9.75",
    ]


def test_the_time_left_counts_what_is_between_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten updates in 10 s and an evaluation of 5 s: 90 more updates take 15/10 x 90 s. The rate is that of the epoch alone."""
    times = itertools.chain([0.0, 100.0, 110.0, 115.0, 115.0 + 1e-9], itertools.repeat(125.0))
    monkeypatch.setattr(display.time, "perf_counter", lambda: next(times))
    monkeypatch.setattr(display, "say", lambda line: None)
    told: list[dict[str, Any]] = []
    shown = Display(lambda **what: told.append(what), "test", epochs=10, last=100, batch_size=8)
    shown.begin_epoch(1, 0)
    assert shown.finished(10) == 8
    assert told[-1] == {"completed": 10, "images_per_s": 8, "seconds_left": 90}
    shown.begin_epoch(2, 10)
    assert told[-1] == {"description": "epoch 2 of 10"}
    shown.finished(11)
    assert told[-1]["seconds_left"] == pytest.approx(89 * 15 / 11)
    assert shown.finished(20) == pytest.approx(8)
    assert told[-1]["seconds_left"] == pytest.approx(80 * 25 / 20)


def test_a_bar_inside_another_is_a_line_of_it() -> None:
    """A terminal has room for one live display: the second bar neither fails nor ends the first."""
    with terminal() as stream, console.bar("training", 10, 4) as update:
        with console.bar("evaluating", 3) as inner:
            inner(advance=2)
        update(completed=5, images_per_s=1000.0, seconds_left=3725.0)
        until = time.monotonic() + 300
        while "5/10" not in stream.getvalue() and time.monotonic() < until:  # it is drawn ten times a second
            time.sleep(0.05)
    last = stream.getvalue().rpartition("training")[2]
    assert "5/10" in last
    assert "evaluating" not in last
    assert "1,000 images/s 1 h 2 min left" in stream.getvalue()
    assert "-:--:--" not in stream.getvalue()
