"""The page of runs in a real browser, while a run trains."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from nin_jax.training import loop
from tests.tiny import tiny

api = pytest.importorskip("playwright.sync_api", reason='Playwright drives the browser: pip install "nin_jax[browser]"')
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
pytest.importorskip("uvicorn")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        loop.train(tiny(seed=seed), folder / f"seed{seed}")
    return folder


@pytest.fixture(scope="module")
def address(runs: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "nin_jax.page.board", str(runs), "--port=0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        found = re.search(r"(http://\S+)/", process.stderr.readline())
        assert found
        yield found[1]
        process.terminate()


@pytest.fixture(
    scope="module", params=[({"width": 1280, "height": 900}, "light"), ({"width": 390, "height": 844}, "dark")]
)
def page(request: Any, address: str) -> Iterator[Any]:
    viewport, scheme = request.param
    with api.sync_playwright() as playwright:
        flags = [
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            *(["--no-sandbox"] if os.geteuid() == 0 else []),
        ]
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = chromium.new_context(viewport=viewport, color_scheme=scheme, bypass_csp=True).new_page()
        page.asked, page.complaints = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.set_default_timeout(120_000)
        page.goto(address)
        page.locator("svg path").first.wait_for(state="attached")  # a flat line counts as hidden
        yield page
        chromium.close()


def test_runs_are_drawn_compared_evaluated_and_asked(page: Any, address: str, runs: Path, tmp_path: Path) -> None:
    assert page.locator("#runs tbody tr").count() >= 2
    assert page.locator("#differences tbody th").all_inner_texts() == ["seed"]
    page.locator("#chosen").select_option(label="seed0")
    page.locator("#evaluate").click()
    page.locator("#report h3").first.wait_for()
    error = json.loads((runs / "seed0/summary.json").read_text())["test_error_pct"]
    assert f"error {error:.2f} % of 72 images" in page.locator("#report h3").first.inner_text()
    assert page.locator("table.confusion tbody tr").count() == 10
    Image.new("RGB", (40, 30), "green").save(tmp_path / "picture.png")
    page.locator("#picture").set_input_files(tmp_path / "picture.png")
    page.locator("#answer .bars button").first.wait_for()
    page.locator("#answer .bars button").nth(2).hover()
    assert page.locator("#answer .bars button").nth(2).get_attribute("aria-pressed") == "true"
    (tmp_path / "text.png").write_text("no picture")
    page.locator("#picture").set_input_files(tmp_path / "text.png")
    page.locator("#answer .error").wait_for()
    assert not page.complaints
    assert all(url.startswith((f"{address}/", "data:")) for url in page.asked)


def test_rows_that_a_run_writes_are_drawn_without_a_reload(page: Any, runs: Path) -> None:
    folder = runs / f"live-{page.viewport_size['width']}"
    folder.mkdir()
    shutil.copy(runs / "seed0/config.json", folder)
    row = {
        "step": 10,
        "epoch": 1,
        "split": "train",
        "loss": 1.0,
        "error_pct": 50.0,
        "learning_rate": 0.1,
        "images_per_s": 100.0,
    }
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    line = page.locator("#runs tbody tr", has_text=folder.name)
    line.get_by_text("training").wait_for()
    assert "1 / 3" in line.inner_text()
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps({**row, "step": 20, "epoch": 2}) + "\n")
    line.get_by_text("2 / 3").wait_for()


def test_the_page_is_accessible(page: Any) -> None:
    found = axe.Axe().run(page).response["violations"]
    assert not found, json.dumps([(v["id"], [n["html"][:200] for n in v["nodes"]]) for v in found], indent=1)
