"""The file that is written: small, whole, and under a policy that lets nothing in."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import nin_jax
from nin_jax import page, registry
from nin_jax.data.datasets import cifar10, cifar100, digits, mnist
from nin_jax.errors import UserError
from nin_jax.page import inline, network, samples
from nin_jax.training.predict import Classifier

NAMES = nin_jax.list_pretrained()


@pytest.fixture(scope="module", params=NAMES)
def text(request, tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("page") / "nested" / "nin.html"
    assert page.write(request.param, file) == file
    return file.read_text()


def element(text: str, name: str) -> list[str]:
    """The contents of the script or style elements of a page that are run."""
    kind = "style" if name == "style" else r"script(?: id=\"network-code\")?"
    return re.findall(rf"<{kind}>(.*?)</{name}>", text, re.DOTALL)


def test_it_is_small_and_names_nothing_outside(text):
    assert len(text.encode()) < 3_000_000
    assert not re.search(r"https?:|//\w+\.|@import|@\w+@", text.replace("@media", ""))
    assert set(re.findall(r'\b(?:src|href)="([^"]*)"', text)) == {"data:,"}


def test_its_policy_allows_its_own_scripts_and_style_alone(text):
    (found,) = re.findall(r'Content-Security-Policy" content="(.*?)"', text)
    rules = dict(rule.split(" ", 1) for rule in found.split("; "))
    assert rules.pop("default-src") == "'none'"
    assert "unsafe" not in found
    for name in ("script", "style"):
        hashes = [base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in element(text, name)]
        assert rules.pop(f"{name}-src").split() == [f"'sha256-{one}'" for one in hashes]
    assert rules == {"img-src": "data:", "worker-src": "blob:", "base-uri": "'none'", "form-action": "'none'"}
    assert not re.search(r'\son\w+=|\sstyle="', text[: text.index('id="description"')])


def test_it_holds_the_network_and_real_images(text):
    description = json.loads(re.findall(r'id="description">(.*?)</script>', text)[0])
    weights = base64.b64decode(re.findall(r'id="weights">(.*?)</script>', text)[0])
    convolutions = [layer for layer in description["layers"] if layer["op"] == "conv"]
    assert len(weights) == 2 * sum(c["maps"] * c["size"] ** 2 * c["channels"] for c in convolutions)
    assert convolutions[-1]["maps"] == len(description["classes"])
    shown = description["samples"]
    assert len(shown) == 10 == len({sample["label"] for sample in shown})


def of_data_set(name: str, dataset: str) -> Classifier:
    """A trained network of the package as if it had been trained on another data set."""
    c = nin_jax.load(name)
    config = dataclasses.replace(c.config, dataset=registry.call("datasets", dataset))
    return Classifier(config, c.info, c.model, c.variables, c.stats)


@pytest.mark.parametrize(
    ("dataset", "ground", "whole"),
    [
        ("folder(background='#ff8000')", "rgb(255, 128, 0)", False),
        ("folder(channels=3)", "rgb(255, 255, 255)", False),
        ("voc(size=32)", "rgb(255, 255, 255)", True),
    ],
)
def test_a_picture_is_laid_out_as_the_network_saw_it(dataset, ground, whole):
    """On the ground of its data set where it is transparent, and all of it where that saw all."""
    text = inline.html(of_data_set("nin.cifar10", dataset))
    description = json.loads(re.findall(r'id="description">(.*?)</script>', text)[0])
    assert (description["ground"], description["whole"]) == (ground, whole)


def test_a_network_of_regions_has_no_page():
    classifier = of_data_set("nin.cifar10", "voc(size=32, clusters=2)")
    classifier.info = classifier.info._replace(image_shape=(64, 32, 3))
    with pytest.raises(UserError, match="its network sees regions of a picture"):
        inline.html(classifier)


def test_every_data_set_has_images_of_its_own():
    """Of the package, or where it has none of the run; each is as large as the network's images."""
    for module in (mnist, cifar10, cifar100):
        info, names = module.INFO, module.INFO.class_names or tuple(map(str, range(10)))
        shown = samples.of(SimpleNamespace(config=None, info=info, class_names=names))  # type: ignore
        assert len(shown) == 10
        for sample in shown:
            picture = Image.open(io.BytesIO(base64.b64decode(sample["image"].partition(",")[2])))
            assert (picture.height, picture.width, len(picture.getbands())) == info.image_shape
    images, labels = digits.load("test")
    sample = samples.of(nin_jax.load("nin.digits"))[0]
    picture = Image.open(io.BytesIO(base64.b64decode(sample["image"].partition(",")[2])))
    assert np.array_equal(np.asarray(picture), images[0, ..., 0])
    assert sample["label"] == labels[0]


def test_a_name_cannot_end_the_script_that_holds_it():
    text = inline.inline("a & b", {"classes": ["</script><script>alert(1)</script>"]}, b"")
    assert "alert(1)</script>" not in text
    assert "<title>a &amp; b</title>" in text


def test_a_network_that_is_too_large_is_refused():
    with pytest.raises(UserError, match=r"would have 4\.0 MB; the most is 3 MB"):
        inline.inline("large", {}, bytes(3_000_000))


def test_kernels_are_those_of_the_file():
    """float16 as they were shipped, to the last bit."""
    classifier = nin_jax.load("nin.digits")
    rows = network.layers(classifier.model, classifier.variables)
    kernel = np.asarray(classifier.params["mlpconv1"]["conv1"]["kernel"])
    assert np.array_equal(rows[0]["kernel"].astype(np.float32), kernel)
    assert rows[0]["kernel"].dtype == np.float16
