"""What README and docs say is what the project has."""

import contextlib
import importlib
import importlib.util
import io
import json
import operator
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import report, start
from nin_jax import __main__ as nin_jax_command
from nin_jax import config, main, registry
from nin_jax.data.datasets import folder
from nin_jax.detection import main as detection
from nin_jax.paper import detection as paper_detection
from nin_jax.paper import pages
from nin_jax.training import pretrained
from nin_jax.training.build import Run
from nin_jax.training.describe import describe
from tests import own_pictures, shown
from tests.faults import page as faults_page
from tests.faults import removals, table
from tests.test_house import FLOORS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))


def test_the_table_of_starts_is_that_of_the_recorded_rows():
    """docs/starting.md shows benchmarks/results/start.csv, by `python -m benchmarks.start --table`."""
    text = start.DOC.read_text()
    assert pages.fill(text, {"starts": start.table()}) == text
    assert "<!-- table: starts -->" in text


def test_the_page_of_speed_is_that_of_the_recorded_measurements():
    """docs/performance.md, and the model in docs/scaling.md, show benchmarks/results/*.json, by `python -m benchmarks.report`."""
    for page, generated in ((report.DOC, report.generated()), (report.SCALING, report.modelled())):
        text = page.read_text()
        assert pages.fill(text, generated) == text
        assert sorted(match[2] for match in pages.PLACE.finditer(text)) == sorted(generated)


def test_the_page_of_detection_is_that_of_the_recorded_runs():
    """docs/detection.md shows experiments/results/detection/*.json, by `python -m nin_jax.paper.detection`."""
    text = (ROOT / paper_detection.PAGE).read_text()
    generated = paper_detection.tables_of(ROOT)
    assert pages.fill(text, generated) == text
    assert sorted(match[2] for match in pages.PLACE.finditer(text)) == sorted(generated)


def test_the_page_of_faults_is_that_of_the_recorded_counts():
    """docs/reliability.md, by `python -m tests.faults --page`; and each test that it names is there."""
    text = faults_page.DOC.read_text()
    assert faults_page.render(text) == text
    named = {test for row in table.ROWS for test in row.tests} | {r.test for r in removals.REMOVALS}
    for test in named:
        file, name = test.split("::")
        assert f"def {name}(" in (ROOT / file).read_text(), test
    for r in removals.REMOVALS:
        module, name = r.name.split(":")
        assert operator.attrgetter(name)(importlib.import_module(module)) is not None, r


def test_every_experiment_named_anywhere_is_there_and_legal():
    """Each --config=... and `experiments/...` in README and docs parses and passes the check."""
    text = "".join(f.read_text() for f in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))
    named = set(re.findall(r"experiments/[\w/]+\.py(?::[\w,-]+)?", text)) - {"experiments/NAME.py"}
    known = {f"experiments/{name}.py" for name in (*config.experiments(), *config.experiments(detection=True))}
    assert known <= {n.split(":")[0] for n in named}
    for name in named:
        if name.startswith("experiments/detect_"):
            detection.parse(["detection", f"--config={name}"])
        else:
            main.parse(["main", f"--config={name}"])


def test_the_table_of_own_pictures_is_that_of_their_folder(tmp_path, monkeypatch):
    """docs/own_pictures.md; `.ci/run` compares the rest of what the page shows."""
    monkeypatch.chdir(tmp_path)
    own_pictures.main(Path("my_pictures"))
    page = (ROOT / "docs" / "own_pictures.md").read_text()
    assert not shown.missing(page.partition("\n...\n")[0] + "\n```\n", "\n".join(folder.info("my_pictures").found))
    assert shown.missing(page, page.replace("disc          48", "disc          47"))


def blocks(page: Path) -> list[tuple[str, str]]:
    """The fenced blocks of a page: the word behind the fence, and the lines."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def test_every_command_stands_in_a_block_that_says_whether_ci_runs_it():
    """`.ci/run` runs what is in ```bash; of what is in ```console, module, experiment and config keys are checked here."""
    for page in PAGES:
        outside = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        assert not re.search(r"^ *(python -m|nin-jax) ", outside, re.MULTILINE), page
        for kind, text in blocks(page):
            lines = [line for line in text.splitlines() if "python -m " in line]
            assert not lines or kind in ("bash", "console"), page
            if kind == "bash" and page.name != "CONTRIBUTING.md":
                for line in text.splitlines():
                    wanted = r"(nin-jax|python -m (nin_jax|launch|benchmarks|tests|pip install))\b"
                    assert re.match(wanted, line), (page, line)
            for line in lines:
                words = shlex.split(line, comments=True)
                if kind == "console" and words[2] != "pip":
                    assert importlib.util.find_spec(words[2]) is not None, line
                    rest = words[words.index("--") + 1 :] if "--" in words else words[3:]
                    if words[2] == "nin_jax.main" or "--" in words:
                        main.parse(["main", *rest])


@pytest.mark.slow
def test_the_project_of_the_page_on_extending_runs(tmp_path, clean_env):
    """docs/extend.md: its three files and its commands, as they stand, in a folder of their own; the network learns."""
    found = blocks(ROOT / "docs/extend.md")
    for text in (text for kind, text in found if kind == "py"):
        (tmp_path / text.splitlines()[0].removeprefix("# ")).write_text(text)
    nin_jax = [sys.executable, "-P", "-m", "nin_jax"]  # -P: like the command nin-jax, it has no folder on its path
    for line in "".join(text for kind, text in found if kind == "bash").splitlines():
        command = [*nin_jax, *shlex.split(line)[1:]]
        subprocess.run(command, cwd=tmp_path, env=clean_env | {"PYTHONPATH": str(ROOT)}, check=True, timeout=900)
    assert json.loads((tmp_path / "runs/recipe/summary.json").read_text())["test_error_pct"] < 5
    assert json.loads((tmp_path / "runs/plain/config.json").read_text())["model"]["name"] == "plain"
    assert (tmp_path / "stripes.stablehlo").exists()


def test_the_page_of_the_command_has_each_word_of_it():
    named = re.findall(r"^\| `nin-jax (\w+)", (ROOT / "docs/command_line.md").read_text(), re.MULTILINE)
    assert sorted(named) == sorted(nin_jax_command.COMMANDS)
    for page in PAGES:
        assert {*re.findall(r"^nin-jax (\w+)", page.read_text(), re.MULTILINE)} <= {*nin_jax_command.COMMANDS}, page


def test_the_models_of_readme_are_as_described():
    """Parameters and multiply-adds of README's table are those of `--mode=describe`."""
    rows = re.findall(
        r"^\| `(\w+)` \|.*\| ([\d,]+) \| ([\d,]+) \| ([\dx ]+) \| `(.+?)` \|$", README.read_text(), re.MULTILINE
    )
    assert {row[0] for row in rows} == set(registry.names("models"))
    for name, parameters, multiply_adds, shape, recipe in rows:
        run = Run(main.parse(["main", f"--config={recipe}"]).config)
        with contextlib.redirect_stdout(io.StringIO()):
            totals = describe(run)
        found = run.config.model.name, f"{totals['parameters']:,}", f"{totals['multiply_adds_per_image']:,}"
        assert (*found, " x ".join(map(str, run.info.image_shape))) == (name, parameters, multiply_adds, shape), recipe


def test_the_speeds_of_readme_are_those_of_the_page_of_speed():
    rows = re.findall(r"\| ([\d,.]+ \| [\d,.]+ \| \*\*[\d.]+\*\*) \|$", README.read_text(), re.MULTILINE)
    assert len(rows) == 6
    for row in rows:
        assert f" | {row} (" in report.DOC.read_text(), row


def test_the_errors_of_shipped_networks_are_those_of_their_cards():
    """README and the first page of the site."""
    networks = pretrained.names()
    measured = {n: json.loads((pretrained.FOLDER / n / "config.json").read_text())["error_pct"] for n in networks}
    for page in README, ROOT / "docs" / "index.md":
        said = dict(re.findall(r"`(nin\.\w+)` \(?([\d.]+) %", page.read_text()))
        assert said == {name: f"{error:.2f}" for name, error in measured.items()}, page


def test_every_file_of_the_package_that_a_page_names_is_there():
    for page in PAGES:
        for name in re.findall(r"`((?:nin_jax|experiments|launch|benchmarks|tests)/[\w/.-]+)`", page.read_text()):
            assert "NAME" in name or (ROOT / name).exists(), (page, name)


def test_the_map_of_the_code_is_the_one_that_is_checked():
    """CONTRIBUTING's floors are those of tests/test_house.py."""
    rows = re.findall(r"^\| (\d+) \| (.+?) \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert {int(floor): set(re.findall(r"`(\w+)", rooms)) for floor, rooms in rows} == dict(enumerate(FLOORS, 1))


def test_every_link_to_a_file_leads_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), (page, target)
