"""What README and docs say is what the project has."""

import re
from pathlib import Path

from benchmarks import report, start
from nin_jax import config, main
from nin_jax.paper import pages
from tests.faults import page as faults_page
from tests.faults import removals, table

ROOT = Path(__file__).parents[1]


def test_the_table_of_starts_is_that_of_the_recorded_rows():
    """docs/starting.md shows benchmarks/results/start.csv, by `python -m benchmarks.start --table`."""
    text = start.DOC.read_text()
    assert pages.fill(text, {"starts": start.table()}) == text
    assert "<!-- table: starts -->" in text


def test_the_page_of_speed_is_that_of_the_recorded_measurements():
    """docs/performance.md shows benchmarks/results/*.json, by `python -m benchmarks.report`."""
    text, generated = report.DOC.read_text(), report.generated()
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
        assert (ROOT / "nin_jax" / r.file).read_text().count(r.before) == 1, r


def test_every_experiment_named_anywhere_is_there_and_legal():
    """Each --config=... and `experiments/...` in README and docs parses and passes the check."""
    text = "".join(f.read_text() for f in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))
    named = set(re.findall(r"experiments/[\w/]+\.py(?::[\w,-]+)?", text))
    assert {f"experiments/{name}.py" for name in config.experiments()} <= {n.split(":")[0] for n in named}
    for name in named:
        main.parse(["main", f"--config={name}"])


def test_every_link_to_a_file_leads_somewhere():
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), (page, target)
