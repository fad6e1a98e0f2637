"""Figures from a real run: a tiny one on the digits."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nin_jax import main
from nin_jax.data.datasets import digits
from nin_jax.errors import UserError
from nin_jax.paper import figures, recorded, tables, translations

pytestmark = pytest.mark.usefixtures("one_device")
WORDS = ["nin_jax", "--config=digits", "--config.model.widths=((8,8,8),(8,8))", "--config.eval_every_epochs=1"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One run with dropout and one without."""
    made = []
    for rate in (0.3, 0.0):
        workdir = tmp_path_factory.mktemp("runs") / f"dropout{rate}"
        words = [*WORDS, f"--workdir={workdir}", "--config.epochs=2", f"--config.model.dropout={rate}"]
        main.run(main.parse(words))
        made.append(workdir)
    return made[0], made[1]


def test_figure_3_draws_the_rows_of_each_run(runs):
    figure = figures.fig3(runs)
    lines = {line.get_label(): line.get_xydata() for line in figure.axes[0].get_lines()}
    assert set(lines) == {f"dropout {rate}: {split}" for rate in (0.3, 0.0) for split in ("train", "test")}
    for workdir, rate in zip(runs, (0.3, 0.0), strict=True):
        rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        for split in ("train", "test"):
            expected = [(row["epoch"], row["error_pct"]) for row in rows if row["split"] == split]
            np.testing.assert_array_equal(lines[f"dropout {rate}: {split}"], expected)
            assert len(expected) == 2


def test_the_tenth_that_figure_4_keeps_is_the_largest():
    """Against sorting; of negative activations, which a network without the last ReLU has, none is shown."""
    maps = np.random.default_rng(0).permutation(640).reshape(8, 8, 10).astype(np.float32)
    kept = figures.strongest(maps)
    assert sorted(kept[kept > 0]) == sorted(maps.ravel())[-64:]
    assert not figures.strongest(-1 - maps).any()


def test_figure_4_frames_the_true_class_of_one_picture_each(runs):
    examples = figures.Examples(runs[0])
    np.testing.assert_array_equal(examples.classes, range(10))
    figure = figures.fig4(examples)
    framed = [
        i for i, ax in enumerate(figure.axes) if ax.spines["left"].get_edgecolor()[:2] == (0xD5 / 255, 0x5E / 255)
    ]
    assert framed == [11 * k + 1 + k for k in range(10)]
    for k in range(10):
        shown = figure.axes[11 * k + 1 + k].images[0].get_array()
        np.testing.assert_array_equal(shown, figures.strongest(examples.maps[k])[..., k])


def test_of_many_classes_the_best_ten_are_shown_and_always_the_true_one():
    logits = np.arange(100, dtype=np.float32)
    assert figures.columns_of(95, logits) == list(range(99, 89, -1))
    assert figures.columns_of(3, logits) == [*range(99, 90, -1), 3]


@pytest.mark.parametrize("name", ["fig3", "fig4", "evidence"])
def test_the_command_writes_both_files(name, runs, tmp_path, capsys):
    figures.main([name, str(runs[0]), f"--out={tmp_path / 'out'}"])
    with Image.open(tmp_path / "out" / f"{name}.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 5
    assert "<svg" in (tmp_path / "out" / f"{name}.svg").read_text()
    assert f"{name}.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fig3", "{tmp}"], "config.json cannot be read"),
        (["fig4", "{tmp}"], "config.json cannot be read"),
        (["fig4", "a", "b"], "fig4 shows one run, not 2"),
    ],
)
def test_mistakes(words, said, tmp_path):
    with pytest.raises(UserError, match=said):
        figures.main([word.format(tmp=tmp_path) for word in words])


def test_an_image_is_shifted_and_its_edge_repeated():
    images = np.random.default_rng(0).integers(0, 256, (3, 6, 5, 2)).astype(np.uint8)
    for rows, columns in ((2, 0), (-2, 0), (0, 3), (0, -3), (1, -4), (0, 0)):
        moved = translations.shifted(images, rows, columns)
        for i, j in np.ndindex(6, 5):
            from_row, from_column = min(max(i - rows, 0), 5), min(max(j - columns, 0), 4)
            np.testing.assert_array_equal(moved[:, i, j], images[:, from_row, from_column])


def test_the_errors_of_shifted_images_are_recorded(runs, tmp_path):
    """Without a shift that of the run's summary; shifted, the mean of what the public predictor makes of four directions."""
    translations.main([str(runs[0]), "--images=355"], tmp_path)
    with open(tmp_path / "digits.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    errors = [float(row["error_pct"]) for row in rows]
    assert len(errors) == 8  # digits are 8 x 8
    summary = json.loads((runs[0] / "summary.json").read_text())
    assert errors[0] == pytest.approx(summary["test_error_pct"], abs=1e-3)
    images, truth = digits.load("test")
    predictor = figures.load_run(runs[0])
    moved = [translations.shifted(images, *to) for to in ((3, 0), (-3, 0), (0, 3), (0, -3))]
    wrong = [np.mean(predictor(one)[0].argmax(-1) != truth) for one in moved]
    assert errors[3] == pytest.approx(100 * np.mean(wrong), abs=1e-3)
    figure = recorded.translations([row | {"overrides": ""} for row in rows], {rows[0]["config"]: "averaged"})
    drawn = [line.get_ydata() for line in figure.axes[1].get_lines()]
    np.testing.assert_allclose(drawn, [np.subtract(errors, errors[0])] * 2)


def test_the_curves_of_a_run_are_kept_and_drawn(runs, tmp_path):
    recorded.keep(runs[0], tmp_path)
    (file,) = tmp_path.glob("*.json")
    figure = recorded.curves([file])
    lines = {line.get_linestyle(): line.get_xydata() for line in figure.axes[0].get_lines()}
    for split, style in (("train", "--"), ("test", "-")):
        epochs, errors = figures.errors(runs[0])[split]
        np.testing.assert_allclose(lines[style], np.stack([epochs, errors], 1), atol=1e-3)
    (runs[0] / "summary.json").rename(tmp_path / "away")
    with pytest.raises(UserError, match="is not a finished run"):
        recorded.keep(runs[0], tmp_path)
    (tmp_path / "away").rename(runs[0] / "summary.json")


def test_the_figures_of_the_project_show_recorded_rows():
    """Each dot of the claims is a recorded row, and each kept curve is drawn."""
    results = tables.ROOT / tables.RESULTS
    rows = [row for row in tables.read(results) if row["config"].startswith("experiments/ablations/claims.py")]
    drawn = [y for ax in recorded.claims(rows).axes for line in ax.get_lines() for y in line.get_ydata()]
    assert drawn
    assert set(drawn) <= {float(row["value"]) for row in rows}
    files = sorted((results / "curves").glob("*.json"))
    assert len([ax for ax in recorded.curves(files).axes if ax.get_lines()]) == len(files) > 0
