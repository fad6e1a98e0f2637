"""Tables from rows written here; collecting runs that were really trained; the pages of the project are not stale."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nin_jax import config as config_lib
from nin_jax import main, storage
from nin_jax.errors import UserError
from nin_jax.paper import pages, reported, tables
from nin_jax.runs.provenance import versions
from nin_jax.training import loop as train

pytestmark = pytest.mark.usefixtures("one_device")
ROOT = Path(__file__).parents[2]
DIGITS = "--config.epochs=1", "--config.train_split=train[:256]", "--config.model.widths=((8, 8, 8), (8, 4))"


def row(config: str, value: float, overrides: str = "", **columns: Any) -> dict[str, str]:
    facts = {"seed": 0, "metric": "test_error_pct", "epochs": 260, "steps": 101_400, "train_seconds": 7200.0}
    facts |= {"device": "gpu Some GPU", "devices": 1, "precision": "float32", "versions": "{}", "commit": "abc"}
    facts |= {"paper_row": "", "reported": "", "date": "2026-01-01"} | columns
    return {k: str(v) for k, v in ({"config": config, "overrides": overrides, "value": value} | facts).items()}


def write(folder: Path, rows: list[dict[str, str]], name: str = "some") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{name}.csv", "w", newline="") as f:
        writer = csv.DictWriter(f, tables.COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def lines(page: str, config: str) -> list[list[str]]:
    """The cells of the rows of a table that end in this command."""
    found = [line for line in page.splitlines() if line.endswith(f"{tables.command(config)} |")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in found]


def test_the_pages_are_those_of_the_recorded_rows() -> None:
    """What `python -m nin_jax.paper.tables` writes into docs/reproduce.md and README.md stands there."""
    generated = tables.tables(tables.read(ROOT / tables.RESULTS))
    places = []
    for page in tables.PAGES:
        text = (ROOT / page).read_text()
        assert pages.fill(text, generated) == text, f"{page} is stale: run python -m nin_jax.paper.tables"
        places += [match[2] for match in pages.PLACE.finditer(text)]
    assert sorted(places) == sorted(generated)


def test_what_was_never_run_says_so() -> None:
    generated = tables.tables([])
    for r in reported.ROWS:
        for config in r.configs:
            cells = [c for c in lines(generated[r.table], config) if c[0] == r.method]
            assert [c[3] for c in cells] == ["not run"], r
    assert "None" in generated["Reduced scale"]


def test_mean_deviation_and_difference(tmp_path: Path) -> None:
    """Against NumPy, over rows of two files that name the same recipe in two ways; other recipes are untouched."""
    values = np.array([10.2, 10.9, 10.53])
    seconds = np.array([7200.0, 5400.0, 9000.0])
    named = ["experiments/cifar10.py", "experiments/cifar10.py", "experiments/ablations/dropout.py:with"]
    rows = [row(c, v, seed=i, train_seconds=s) for i, (c, v, s) in enumerate(zip(named, values, seconds, strict=True))]
    write(tmp_path, rows[:2], "cifar10")
    write(tmp_path, [*rows[2:], row("experiments/mnist.py", 0.5, device="cpu cpu", devices=4)], "other")
    generated = tables.tables(tables.read(tmp_path))
    wanted = f"{values.mean():.2f} ± {values.std(ddof=1):.2f} (n = 3)"
    for table, reported_value in (("Table 1", 10.41), ("Table 5", 10.41)):
        (cells,) = lines(generated[table], "experiments/cifar10.py")
        assert cells[2:7] == [f"{reported_value}", wanted, f"{values.mean() - 10.41:+.2f}", "1 x gpu Some GPU", "2 h"]
    assert lines(generated["Ablations"], "experiments/ablations/gap_vs_fc.py:gap")[0][1] == wanted
    assert lines(generated["Results"], "experiments/cifar10.py")[0][3] == wanted
    assert lines(generated["Table 1"], "experiments/cifar10.py:release")[0][3] == "not run"
    (cells,) = lines(generated["Table 4"], "experiments/mnist.py")
    assert cells[2:7] == ["0.47", "0.50 (n = 1)", "+0.03", "4 x cpu", "2 h"]


def test_a_run_with_overrides_is_no_number_of_the_paper(tmp_path: Path) -> None:
    """It is grouped with those of the same overrides, elsewhere; so is a recipe that no table has."""
    short = "--config.epochs=2"
    rows = [row("experiments/cifar10.py", v, short, epochs=2.0, train_seconds=80) for v in (60.0, 70.0)]
    rows.append(row("experiments/cifar10.py", 55.0, short, metric="train_error_pct"))
    rows.append(row("experiments/cifar10.py", 30, "--config.epochs=9", epochs=9.0, train_seconds=600))
    rows.append(row("experiments/cifar10.py:tune", 12.5, metric="validation_error_pct"))
    rows.append(row("experiments/digits.py", 1.5, epochs=60.0))
    rows.append(row("experiments/gone.py:x", 5.0))
    rows.append(row("experiments/mnist.py", 5.0, "--config.model.dropout=0.2"))
    write(tmp_path, rows)
    generated = tables.tables(tables.read(tmp_path))
    (cells,) = lines(generated["Table 1"], "experiments/cifar10.py")
    assert cells[3] == "not run"
    body = generated["Reduced scale"].splitlines()[2:]
    assert len(body) == 5  # cifar10.py:tune is a row of two ablations
    assert body[0] == (
        f"| 65.00 ± {np.std([60, 70], ddof=1):.2f} (n = 2) | test error | 55.00 (n = 1) | 2 | 1 x gpu Some GPU | 80 s | "
        f"`python -m nin_jax.main --config=experiments/cifar10.py {short}` |"
    )
    assert body[1].startswith("| 30.00 (n = 1) | test error |  | 9 | 1 x gpu Some GPU | 10 min |")
    assert "experiments/digits.py" in body[2]
    assert "experiments/gone.py:x" in body[3]
    assert lines(generated["Ablations"], "experiments/ablations/weight_decay.py:1e-4")[0][1] == "12.50 (n = 1)"
    measured = generated["Measured here"].splitlines()[2:]
    assert [line.split(" | ")[6] for line in measured[:2]] == ["10.41, in 260 epochs"] * 2
    assert tables.paper_value("experiments/cifar10.py:fast", "") == "8.81, by another recipe"
    assert tables.paper_value("experiments/cifar10.py", "--config.model.dropout=0.2") == "10.41, by another recipe"
    assert tables.paper_value("experiments/cifar10.py", tables.BFLOAT16) == "10.41"
    (cells,) = lines(generated["Measured here"], "experiments/digits.py")
    assert cells[6:9] == ["not in the paper", "", "abc"]
    assert "gone" not in generated["Measured here"]
    assert "mnist" not in generated["Measured here"]


def test_a_run_that_trained_a_network_of_the_package_names_it() -> None:
    trained = row("experiments/digits.py", 0.5634, seed=0, epochs=60.0, device="cpu cpu")
    other = trained | {"value": "0.8", "seed": "1"}
    (cells,) = lines(tables.tables([other, trained])["Measured here"], "experiments/digits.py")
    assert cells[7] == "0.56 (`nin.digits`)"
    assert pages.kept([other]) == pages.kept([trained | {"config": "experiments/mnist.py"}]) == ""


def test_a_run_in_bfloat16_stands_for_its_recipe_and_says_so(tmp_path: Path) -> None:
    """Until there is one in float32."""
    half, single = {"overrides": tables.BFLOAT16, "precision": "bfloat16"}, {"precision": "float32"}
    rows = [
        row("experiments/mnist.py", 0.6, **half),
        row("experiments/mnist.py", 0.7, metric="train_error_pct", **half),
    ]
    for recorded, wanted in (
        (rows, "0.60 (n = 1, bfloat16)"),
        ([*rows, row("experiments/mnist.py", 0.5, **single)], "0.50 (n = 1)"),
    ):
        generated = tables.tables(recorded)
        (cells,) = lines(generated["Table 4"], "experiments/mnist.py")
        assert cells[3] == wanted
        assert "mnist" not in generated["Reduced scale"]
        assert "| 0.60 (n = 1, bfloat16) | test error | 0.70 (n = 1, bfloat16) |" in generated["Measured here"]


def test_places_are_filled_again_and_unknown_ones_named() -> None:
    page = "a\n<!-- table: x -->\nold\n<!-- end of table -->\nb\n<!-- table: y -->\n<!-- end of table -->\n"
    once = pages.fill(page, {"x": "| \\1 |", "y": "new"})
    assert once == (
        "a\n<!-- table: x -->\n\n| \\1 |\n\n<!-- end of table -->\nb\n<!-- table: y -->\n\nnew\n\n<!-- end of table -->\n"
    )
    assert pages.fill(once, {"x": "| \\1 |", "y": "new"}) == once
    with pytest.raises(UserError, match="no table 'y' to generate"):
        pages.fill(page, {"x": ""})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of digits.py with overrides: of the network, of a split, and of keys that no experiment is told by."""
    workdir = tmp_path_factory.mktemp("runs") / "short"
    words = *DIGITS, "--config.seed=3", "--config.mapper=shard_map", "--config.keep=1", "--config.eval_every_epochs=1"
    command = main.parse(["nin_jax", "--config=digits", f"--workdir={workdir}", *words])
    train.train(command.config, workdir)
    return workdir


def test_a_finished_run_becomes_a_row_once(run: Path, tmp_path: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert tables.collect([run], tmp_path) == 2
    assert [f.name for f in tmp_path.iterdir()] == ["digits.csv"]
    got, fitted = tables.read(tmp_path)
    assert list(got) == tables.COLUMNS
    assert got["config"] == "experiments/digits.py"
    assert got["seed"] == "3"
    assert float(got["value"]) == pytest.approx(summary["test_error_pct"], abs=1e-4)
    assert (got["metric"], got["paper_row"], got["reported"]) == ("test_error_pct", "", "")
    assert (int(got["steps"]), float(got["epochs"])) == (summary["step"], 1) == (4, 1)
    assert (got["device"], int(got["devices"])) == (summary["device"], summary["devices"])
    assert json.loads(got["versions"]) == versions()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert float(fitted["value"]) == pytest.approx(rows[-2]["error_pct"], abs=1e-4)
    assert rows[-2]["split"] == "train"
    assert {column for column in got if got[column] != fitted[column]} == {"metric", "value"}
    # The overrides are words of a command that gives this run's config.
    words = shlex.split(got["overrides"])
    assert sorted(words) == sorted(DIGITS)
    again = main.parse(["nin_jax", f"--config={got['config']}", *words]).config
    theirs = json.loads((run / "config.json").read_text())
    differing = {line.split(":")[0] for line in config_lib.differences(config_lib.to_dict(again), theirs)}
    assert differing == {"seed", "mapper", "keep", "eval_every_epochs"}

    before = (tmp_path / "digits.csv").read_bytes()
    elsewhere = shutil.copytree(run, tmp_path / "copied", copy_function=shutil.copyfile)  # another time of change
    assert tables.collect([run, elsewhere, run], tmp_path) == 0
    assert (tmp_path / "digits.csv").read_bytes() == before


def altered(run: Path, to: Path, config: Any = None, **summary: Any) -> Path:
    """What the run leaves, but of another config or ended in another way; without its checkpoints."""
    to.mkdir()
    plain = json.loads((run / "config.json").read_text()) if config is None else config_lib.to_dict(config)
    storage.write_json(to / "config.json", plain)
    storage.write_json(to / "summary.json", json.loads((run / "summary.json").read_text()) | summary)
    return to


def test_a_run_is_told_to_be_of_its_recipe(run: Path, tmp_path: Path) -> None:
    """Whatever its seed and place: the first recipe that says the same, without overrides; a few of them with one."""
    for i, name in enumerate(dict.fromkeys(map(tables.canonical, tables.recipes()))):
        words = [f"--config={name}", "--config.seed=7", "--config.data_dir=/x", "--config.keep=9"]
        got = tables.result(altered(run, tmp_path / f"{i}", main.parse(["nin_jax", *words]).config))
        assert got is not None
        assert (got["config"], got["overrides"]) == (tables.canonical(name), "")
        rows = [r for r in reported.ROWS if got["config"] in map(tables.canonical, r.configs)]
        assert (got["paper_row"], got["reported"]) == ((rows[0].name, str(rows[0].value)) if rows else ("", ""))
        if i % 10:
            continue
        other = "float32" if got["precision"] == "bfloat16" else "bfloat16"
        words.append(f"--config.precision={other}")
        got = tables.result(altered(run, tmp_path / f"{i}b", main.parse(["nin_jax", *words]).config))
        assert got is not None
        assert (got["config"], got["overrides"]) == (tables.canonical(name), f"--config.precision={other}")
        assert (got["paper_row"], got["reported"], got["precision"]) == ("", "", other)


def test_validation_is_not_called_test(run: Path, tmp_path: Path) -> None:
    got = tables.result(altered(run, tmp_path / "run", config_lib.experiment("cifar10", "tune")))
    assert got is not None
    assert got["metric"] == "validation_error_pct"


def test_a_config_of_an_older_version_is_read(run: Path, tmp_path: Path) -> None:
    """A model's argument that it does not name has the model's own default."""
    workdir = altered(run, tmp_path / "run", config_lib.experiment("cifar10", "release"))
    plain = json.loads((workdir / "config.json").read_text())
    del plain["model"]["pool_start"], plain["schedule"]["plateau_epochs"]
    storage.write_json(workdir / "config.json", plain)
    got = tables.result(workdir)
    assert got is not None
    assert (got["config"], got["overrides"]) == ("experiments/cifar10.py:release", "")


def test_unfinished_runs_are_left_out_and_other_folders_refused(run: Path, tmp_path: Path, capsys: Any) -> None:
    diverged = altered(run, tmp_path / "diverged", status="diverged", test_error_pct=None)
    going = shutil.copytree(run, tmp_path / "going")
    (going / "summary.json").unlink()
    assert tables.collect([diverged, going], tmp_path / "results") == 0
    said = capsys.readouterr().err
    assert "diverged is left out: diverged" in said
    assert "going is left out: not finished" in said
    with pytest.raises(UserError, match="nothing is not a run directory"):
        tables.collect([run, tmp_path / "nothing"], tmp_path / "results")
    (going / "summary.json").write_text("{")
    with pytest.raises(UserError, match=r"going: .*summary\.json cannot be read"):
        tables.collect([run, going], tmp_path / "results")
    own = config_lib.experiment("cifar10")
    own.model = {"name": "no.such.model"}
    with pytest.raises(UserError, match=r"no\.such\.model"):
        tables.collect([run, altered(run, tmp_path / "own", own)], tmp_path / "results")
    assert not list((tmp_path / "results").glob("*"))


def test_the_command(run: Path, tmp_path: Path, clean_env: dict[str, str]) -> None:
    """In a copy of the checkout's pages: one call collects and writes both; a mistake is one line and exit code 2."""
    (tmp_path / "docs").mkdir()
    for page in tables.PAGES:
        shutil.copy(ROOT / page, tmp_path / page)
    tables.main(["--collect", str(run)], tmp_path)
    assert (tmp_path / "experiments/results/digits.csv").exists()
    assert "--config=experiments/digits.py --config.epochs=1" in (tmp_path / "docs/reproduce.md").read_text()
    command = [sys.executable, "-m", "nin_jax.paper.tables", "--collect", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=clean_env, cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("nin_jax: --collect=")
    assert done.stderr.count("\n") == 1
    (tmp_path / "README.md").unlink()
    with pytest.raises(UserError, match=r"README\.md is missing"):
        tables.main([], tmp_path)


def test_a_first_stage_may_lie_anywhere(run: Path, tmp_path: Path) -> None:
    """A run of HCP that starts from one of its recipe's first stage is a run of the recipe; one from another run is not."""
    of = {
        "first": ("hcp_scenes:images", None),
        "second": ("hcp_scenes", tmp_path / "first"),
        "other": ("hcp_scenes", run),
    }
    for name, (recipe, init_from) in of.items():
        (tmp_path / name).mkdir()
        words = [f"--config.init_from={init_from}"] if init_from else []
        plain = config_lib.to_dict(main.parse(["nin_jax", f"--config={recipe}", *words]).config)
        (tmp_path / name / "config.json").write_text(json.dumps(plain))
        shutil.copyfile(run / "summary.json", tmp_path / name / "summary.json")
    rows = {name: tables.result(tmp_path / name) for name in of}
    assert {name: row["config"] for name, row in rows.items() if row} == {
        "first": "experiments/hcp_scenes.py:images",
        "second": "experiments/hcp_scenes.py",
        "other": "experiments/hcp_scenes.py",
    }
    assert [row["overrides"] for row in rows.values() if row] == ["", "", f"--config.init_from={run}"]
