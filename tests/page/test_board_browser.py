"""The page of runs in a real browser, while a run trains."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.faults import harness

api = pytest.importorskip("playwright.sync_api", reason='Playwright drives the browser: pip install "nin_jax[browser]"')
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
pytest.importorskip("uvicorn")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium"),
]
WIDE, PHONE = ({"width": 1280, "height": 900}, "light"), ({"width": 390, "height": 844}, "dark")


@pytest.fixture(scope="module")
def visit(server: str) -> Iterator[Callable[..., Any]]:
    """Opens the page in a window of its own, with what it asks for and complains of as attributes."""
    with api.sync_playwright() as playwright:
        flags = [
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            *(["--no-sandbox"] if os.geteuid() == 0 else []),
        ]
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=flags, timeout=300_000)

        def opened(viewport: Any, scheme: str) -> Any:
            page = chromium.new_context(viewport=viewport, color_scheme=scheme, bypass_csp=True).new_page()
            page.asked, page.complaints = [], []
            page.on("request", lambda request: page.asked.append(request.url))
            page.on("pageerror", lambda error: page.complaints.append(str(error)))
            page.set_default_timeout(300_000)
            page.goto(server)
            page.locator("svg path").first.wait_for(state="attached")  # a flat line counts as hidden
            return page

        yield opened
        chromium.close()


def is_fine(page: Any, server: str) -> None:
    """It is accessible, by axe-core; nothing is wider than the window; it complained of nothing and asked nobody else."""
    found = axe.Axe().run(page).response["violations"]
    assert not found, json.dumps([(v["id"], [n["html"][:200] for n in v["nodes"]]) for v in found], indent=1)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert not page.complaints
    assert all(url.startswith((f"{server}/", "data:")) for url in page.asked)
    if folder := os.environ.get("NIN_JAX_SCREENSHOTS"):
        name = f"board-{page.viewport_size['width']}-{len(page.asked)}.png"
        page.screenshot(path=Path(folder) / name, full_page=True)


@pytest.mark.parametrize("window", [WIDE, PHONE], ids=["wide", "phone"])
def test_runs_are_drawn_compared_evaluated_and_asked(
    visit: Any, window: Any, server: str, runs: Path, tmp_path: Path
) -> None:
    page = visit(*window)
    for seed in (0, 1):
        page.get_by_label(f"draw seed{seed}").set_checked(True)
    page.locator("#differences tbody th").first.wait_for()
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
    is_fine(page, server)
    (tmp_path / "text.png").write_text("no picture")
    page.locator("#picture").set_input_files(tmp_path / "text.png")
    page.locator("#answer .error").wait_for()


def test_a_run_is_followed_while_it_trains(visit: Any, server: str, runs: Path, tmp_path: Path) -> None:
    """The digits, trained by the command beside the page: epochs, curves and the time left move without a reload.

    After each of the first epochs, of 22 updates, the run waits until the page has shown it.
    """
    page, epochs = visit(*WIDE), (1, 2, 3)
    waits = {"at": "nin_jax.training.loop:Event.AFTER_UPDATES", "do": "wait"}
    hooks = [waits | {"call": 22 * epoch + 3, "until": f"{tmp_path}/{epoch}"} for epoch in epochs]
    words = ["train", "digits", f"--workdir={runs / 'live'}", "--config.epochs=5"]
    training = harness.start(words, *hooks, module="nin_jax.__main__")
    try:
        line = page.locator("#runs tbody tr", has_text="live")
        line.get_by_text("training").wait_for()
        for name, drawn in {"live": True, "seed0": True, "seed1": False}.items():
            page.get_by_label(f"draw {name}").set_checked(drawn)
        seen, deadline = set(), time.monotonic() + harness.SECONDS
        for epoch in epochs:
            while len(seen) < epoch:  # each epoch ends its curve with another loss
                assert training.poll() is None
                assert time.monotonic() < deadline
                page.wait_for_timeout(200)
                label = page.locator("#charts svg").first.get_attribute("aria-label")
                shown, left = line.locator("td").nth(2).inner_text(), line.locator("td").last.inner_text()
                if f"{epoch} / 5" in shown and "live train" in label and left:
                    seen.add(label.partition("live train")[2].partition(";")[0])
            (tmp_path / str(epoch)).touch()
        assert harness.finish(training).code == 0
    finally:
        training.kill()
    assert len(seen) == len(epochs)
    line.get_by_text("done").wait_for()
    assert "5 / 5" in line.inner_text()
    error = json.loads((runs / "live/summary.json").read_text())["test_error_pct"]
    assert f"{error:.2f} %" in line.inner_text()
    cells = page.locator("#differences tbody tr", has=page.get_by_role("rowheader", name="dataset", exact=True))
    assert {*cells.locator("td").all_inner_texts()} == {"digits", "synthetic"}
    is_fine(page, server)
