"""The page in a real browser: Debian's Chromium, driven by Playwright, from a file and with the rest of the world cut off.

apt-get install --no-install-recommends chromium && python -m pip install "nin_jax[browser]"
python -m pytest -m slow tests/page/test_browser.py
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import nin_jax
from nin_jax import page as pages
from nin_jax.training.predict import Classifier
from tests.page.test_inline import of_data_set
from tests.page.test_picture import bomb

api = pytest.importorskip("playwright.sync_api", reason='Playwright drives the browser: pip install "nin_jax[browser]"')
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium"),
]
# Of the package's networks the one for photographs, and those one draws for.
NETWORKS = [name for name in nin_jax.list_pretrained() if name in ("nin.cifar10", "nin.mnist", "nin.digits")]
ONE = pytest.mark.parametrize("made", NETWORKS[:1], indirect=True)
SIZES = {"wide": {"width": 1200, "height": 900}, "phone": {"width": 390, "height": 844}}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with api.sync_playwright() as playwright:
        flags = ["--host-resolver-rules=MAP * ~NOTFOUND", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=flags, timeout=300_000)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module", params=NETWORKS)
def made(request: Any, tmp_path_factory: Any) -> tuple[Classifier, Path]:
    """A trained network of the package, and its page."""
    classifier = nin_jax.load(request.param)
    return classifier, pages.write(classifier, tmp_path_factory.mktemp("page") / f"{request.param}.html")


class Visit:
    """A visitor: the page, opened from its file, and all that it asked for or complained of."""

    def __init__(self, browser: Any, file: Path, **options: Any):
        self.context = browser.new_context(**{"viewport": SIZES["wide"], **options})
        self.context.set_default_timeout(300_000)
        self.page, self.requests, self.complaints = self.context.new_page(), [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda line: self.complaints.append(line.text) if line.type == "error" else None)
        self.page.goto(file.as_uri())
        self.wait(1)

    def wait(self, count: int) -> None:
        """Until that many answers have been given."""
        self.page.locator(f'body[data-count="{count}"]').wait_for()

    def count(self) -> int:
        return int(self.page.locator("body").get_attribute("data-count"))

    def logits(self) -> np.ndarray:
        return np.array(json.loads(self.page.locator("body").get_attribute("data-answer")))

    def best(self) -> str:
        return self.page.locator("#answers .name").first.inner_text()

    def becomes(self, name: str) -> None:
        """Waits until that is the most probable class."""
        self.page.locator("#answers li:first-child .name").get_by_text(name, exact=True).wait_for()

    def give(self, *files: Any) -> None:
        """Chooses a file, by name or as (name, content)."""
        made = [{"name": f[0], "mimeType": "image/png", "buffer": f[1]} if isinstance(f, tuple) else f for f in files]
        self.page.locator("#file").set_input_files(made)

    def stays_at_home(self) -> None:
        """Nothing was asked for but the file itself and what lies in it."""
        assert {url.split(":")[0] for url in self.requests} <= {"file", "data", "blob"}
        assert sum(url.startswith("file:") for url in self.requests) == 1
        assert not self.complaints


@pytest.fixture
def visit(browser: Any, made: Any) -> Iterator[Visit]:
    visitor = Visit(browser, made[1])
    yield visitor
    visitor.stays_at_home()
    visitor.context.close()


def images(classifier: Any, count: int) -> np.ndarray:
    """Patterns of all scales, contrasts and colours, uint8 `[count, H, W, C]`."""
    rng, (height, width, channels) = np.random.default_rng(0), classifier.info.image_shape
    return np.stack(
        [
            np.asarray(
                Image.fromarray(rng.integers(0, rng.integers(60, 256), (side, side, 3), np.uint8)).resize(
                    (width, height)
                )
            )[..., :channels]
            for side in rng.integers(2, 12, count)
        ]
    )


def test_the_logits_are_jaxs_on_100_images(made, visit, tmp_path):
    """Each is chosen as a PNG file, and goes through the browser's decoder, canvas and worker."""
    classifier, _ = made
    given = images(classifier, 100)
    wanted = classifier.logits(given)
    for i, (image, logits) in enumerate(zip(given, wanted, strict=True)):
        file = tmp_path / f"{i}.png"
        Image.fromarray(image if image.shape[-1] == 3 else image[..., 0]).save(file)
        visit.give(file)
        visit.wait(i + 2)
        np.testing.assert_allclose(visit.logits(), logits, rtol=0, atol=1e-5 * np.abs(wanted).max())
        assert visit.best() == classifier.class_names[int(np.argmax(logits))]


def test_transparent_and_wide_pictures_are_as_the_network_saw_them(browser, tmp_path):
    """The logits of a transparent picture on orange are JAX's; of a picture that is seen whole they are near them."""
    orange, voc = (of_data_set("nin.cifar10", text) for text in ("folder(background='#ff8000')", "voc(size=32)"))
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 4), dtype=np.uint8)
    pixels[..., 3] = 255 * (pixels[..., 3] > 127)
    wide = np.zeros((32, 64, 3), np.uint8)
    wide[:, :16], wide[:, 48:] = (255, 0, 0), (0, 0, 255)  # which the middle does not show
    whole, middle = voc.logits(np.stack([voc.read(wide)[0], wide[:, 16:48]]))
    assert np.abs(middle - whole).max() > 0.5 * np.abs(whole).max()
    for classifier, picture, tolerance in ((orange, pixels, 1e-5), (voc, wide, 0.15)):
        visitor = Visit(browser, pages.write(classifier, tmp_path / "page.html"))
        Image.fromarray(picture).save(tmp_path / "picture.png")
        visitor.give(tmp_path / "picture.png")
        visitor.wait(2)
        wanted = classifier.logits(classifier.read(tmp_path / "picture.png"))[0]
        np.testing.assert_allclose(visitor.logits(), wanted, rtol=0, atol=tolerance * np.abs(wanted).max())
        visitor.context.close()


LOOP = """() => {
    const began = performance.now();
    let sum = 0;
    for (let i = 0; i < 50_000_000; i++) sum += Math.sqrt(i);
    return sum && performance.now() - began;
}"""


def test_the_first_answer_comes_within_a_second(browser, made):
    """Counted from where the browser begins to open the file; the best of twenty visits at most. A slow machine has longer.

    How slow it is at each visit says a loop that takes 160 ms where the second was promised.
    """
    if os.getloadavg()[0] > 2 * (os.cpu_count() or 1):
        pytest.skip("others compute on this machine: what is timed now says nothing")
    shares = []  # of what each visit has
    while not shares or (min(shares) >= 1 and len(shares) < 20):
        visitor = Visit(browser, made[1])
        loop, first = visitor.page.evaluate(LOOP), float(visitor.page.locator("body").get_attribute("data-first"))
        shares.append(first / (1000 * max(1, loop / 160)))
        visitor.context.close()
        print(f"{made[1].name}: first answer after {first:.0f} ms, a loop {loop:.0f} ms")
    assert min(shares) < 1


def test_samples_are_as_the_network_sees_them(made, visit):
    """Pixel for pixel: their logits are JAX's too."""
    classifier, _ = made
    samples = visit.page.locator("#samples button")
    assert samples.count() == 10
    for i in range(10):
        content = base64.b64decode(samples.nth(i).locator("img").get_attribute("src").partition(",")[2])
        pixels = np.asarray(Image.open(io.BytesIO(content))).reshape(1, *classifier.info.image_shape)
        logits = classifier.logits(pixels)
        answers = visit.count()
        samples.nth(i).click()
        visit.wait(answers + 1)
        np.testing.assert_allclose(visit.logits(), logits[0], rtol=0, atol=1e-5 * np.abs(logits).max())
        label = samples.nth(i).locator("img").get_attribute("alt")
        assert visit.page.locator("#verdict").inner_text().startswith(f"The data set says {label}: ")


@ONE
def test_a_picture_is_dropped_and_a_class_pointed_at(made, visit, tmp_path):
    before = visit.count()
    picture = base64.b64encode(large_picture(tmp_path).read_bytes()).decode()
    drop = visit.page.evaluate_handle(
        """(text) => {
            const transfer = new DataTransfer();
            const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
            transfer.items.add(new File([bytes], "holiday.jpg", { type: "image/jpeg" }));
            return transfer;
        }""",
        picture,
    )
    visit.page.dispatch_event("body", "drop", {"dataTransfer": drop})
    visit.wait(before + 1)
    for box in ("#answers button", "#classes button"):
        for act in ("hover", "focus"):
            button = visit.page.locator(box).nth(1)
            before_hover = visit.page.locator("#caption").inner_text()
            getattr(button, act)()
            name = button.locator(".name, span:not(.bar):not(.share)").first.inner_text()
            assert f"“{name}”" in visit.page.locator("#caption").inner_text()
            assert button.get_attribute("aria-pressed") == "true"
            visit.page.mouse.move(2, 2)
            visit.page.evaluate("document.activeElement.blur()")
            assert visit.page.locator("#caption").inner_text() == before_hover


def large_picture(folder: Path) -> Path:
    file = folder / "holiday.jpg"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (60, 80, 3), np.uint8)).resize((1600, 1200)).save(file)
    return file


@ONE
def test_every_layer_is_shown(made, visit):
    layers = visit.page.locator("#layers button")
    for i in range(layers.count()):
        layers.nth(i).click()
        name = layers.nth(i).inner_text()
        assert visit.page.locator("#layer-text").inner_text().startswith(f"{name}: ")
        tiles = visit.page.locator("#channels button")
        assert tiles.count() > 0
        tiles.first.hover()
        assert f" of {name}: bright" in visit.page.locator("#caption").inner_text()


REFUSED = {
    "text": (("notes.png", b"Buy milk.\n" * 50), "notes.png is not a PNG, JPEG, GIF, WebP or BMP picture."),
    "bomb": (("bomb.png", bomb()), "bomb.png has 50,000 \u00d7 50,000 pixels; the most is 50 million."),
    "broken": (("cut.png", bomb(100)[:-30]), "cut.png is broken: it cannot be decoded."),
}


@ONE
@pytest.mark.parametrize("what", [*REFUSED, "large"])
def test_what_it_cannot_do_is_refused_in_one_visible_line(visit, what, tmp_path):
    given, line = REFUSED.get(what, (None, "film.png has 100 MB; the most is 20 MB."))
    if given is None:
        given = tmp_path / "film.png"
        with given.open("wb") as file:
            file.truncate(100_000_000)
    answers = visit.count()
    visit.give(given)
    error = visit.page.locator("#error")
    error.wait_for(state="visible")
    assert error.inner_text() == line
    assert visit.count() == answers
    visit.page.locator("#samples button").first.click()
    visit.wait(answers + 1)
    assert not error.is_visible()


@ONE
def test_links_and_text_are_refused(visit):
    visit.page.evaluate("dispatchEvent(new DragEvent('drop', { dataTransfer: new DataTransfer() }))")
    assert "never goes online" in visit.page.locator("#error").inner_text()
    visit.page.evaluate("dispatchEvent(new ClipboardEvent('paste', { clipboardData: new DataTransfer() }))")
    assert visit.page.locator("#error").inner_text() == "There is no picture on the clipboard."


@pytest.mark.parametrize("made", [name for name in NETWORKS if name != "nin.cifar10"], indirect=True)
def test_digits_are_drawn_by_hand_and_by_keyboard(visit):
    page = visit.page
    page.locator("#clear").click()
    box = page.locator("#picture").bounding_box()

    def draw(*points: tuple[float, float]) -> None:
        first, *others = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
        page.mouse.move(*first)
        page.mouse.down()
        for point in others:
            page.mouse.move(*point, steps=3)
        page.mouse.up()

    draw((0.5, 0.15), (0.5, 0.85))
    visit.becomes("1")
    page.locator("#clear").click()
    turn = np.linspace(0, 2 * np.pi, 17)
    draw(*zip(0.5 - 0.2 * np.sin(turn), 0.5 - 0.32 * np.cos(turn), strict=True))
    visit.becomes("0")
    page.locator("#clear").click()
    page.locator("#picture").focus()
    for key in [*["ArrowUp"] * 8, " ", *["ArrowDown"] * 16]:
        page.keyboard.press(key)
    visit.becomes("1")


@pytest.mark.parametrize("made", NETWORKS[:2], indirect=True)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_it_is_accessible(browser, made, scheme, size):
    """By axe-core: names, roles, contrast, order. And nothing is wider than the window."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-core finds what is not accessible")
    visitor = Visit(browser, made[1], viewport=SIZES[size], color_scheme=scheme, bypass_csp=True)
    visitor.page.locator("#draw").click()
    found = axe.Axe().run(visitor.page)
    assert not found.response["violations"], found.generate_report()
    assert visitor.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    if folder := os.environ.get("NIN_JAX_SCREENSHOTS"):
        visitor.page.locator("#draw").click()
        visitor.page.screenshot(path=Path(folder) / f"{made[1].stem}-{size}-{scheme}.png", full_page=True)
    visitor.context.close()


@ONE
def test_it_works_where_there_are_no_workers(browser, made):
    context = browser.new_context()
    context.set_default_timeout(300_000)
    context.add_init_script("delete globalThis.Worker")
    page = context.new_page()
    page.goto(made[1].as_uri())
    page.locator('body[data-count="1"]').wait_for()
    context.close()
