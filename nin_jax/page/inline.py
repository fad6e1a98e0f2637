"""Writing the page: everything inlined into one file, under a policy that lets the browser load nothing."""

from __future__ import annotations

import base64
import hashlib
import html as markup
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from PIL import ImageColor

from nin_jax.errors import UserError
from nin_jax.page import network, samples
from nin_jax.training.predict import Classifier
from nin_jax.weights import zoo

STATIC = Path(__file__).parent / "static"
MOST_BYTES = 3_000_000

# How the training images of a data set frame a digit: the side of its box in pixels, and what lies in the image's middle.
INK = {"mnist": {"box": 20, "centre": "mass"}, "digits": {"box": 8, "centre": "box"}}
TITLES = {
    "digits": "handwritten digits",
    "mnist": "MNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "svhn": "SVHN",
    "imagenet": "ImageNet",
}


def html(classifier: str | Path | Classifier) -> str:
    """The text of the file that `nin_jax.page.write` writes, of the same classifier."""
    if not isinstance(classifier, Classifier):
        classifier = zoo.load(classifier)
    info, facts, shown = classifier.info, classifier.metadata, samples.of(classifier)
    dataset, (height, width, _) = classifier.config.dataset, info.image_shape
    whole = hasattr(dataset.entry, "image")  # it makes images of all of a picture, not of its middle
    if whole and height != width:
        raise UserError(f"{dataset}: its network sees regions of a picture, which the page does not cut out")
    ground = ImageColor.getrgb(dataset.arguments.get("background", "white"))[:3]
    rows = network.layers(classifier.model, classifier.variables)
    layers, weights = network.pack(rows)
    subject = TITLES.get(info.name, info.name)
    size = sum(p.size for p in jax.tree.leaves(classifier.params))
    about = f"A network of {size:,} parameters, trained on {subject}"
    if facts:
        about += f"; error {facts['error_pct']:.2f} % on the {facts['examples']:,} images of the {facts['split']} split"
    description = {
        **{"shape": info.image_shape, "classes": classifier.class_names, "layers": layers},
        **network.standardisation(classifier.config.preprocess, classifier.stats),
        **{"whole": whole, "ground": f"rgb{ground}"},
        **{"subject": subject, "samples": shown, "ink": INK.get(info.name), "about": f"{about}. Made with nin_jax."},
    }
    return inline(f"Network In Network on {subject}", description, weights)


def inline(title: str, description: Mapping[str, Any], weights: bytes) -> str:
    """The page as one text: `static/page.html` with all that it names. Raises `UserError` where it gets too large."""
    script = {name: (STATIC / f"{name}.js").read_text() for name in ("network", "picture", "page", "events")}
    parts = {
        "title": markup.escape(title),
        "style": (STATIC / "page.css").read_text(),
        "description": json.dumps(description, separators=(",", ":")).replace("<", "\\u003c"),  # "</script>" in a name
        "weights": base64.b64encode(weights).decode(),
        "network": script["network"],
        "page": script["picture"] + script["page"] + script["events"],
    }
    parts["csp"] = policy(parts["style"], parts["network"], parts["page"])
    text = re.sub(r"@(\w+)@", lambda place: parts[place[1]], (STATIC / "page.html").read_text())
    if (size := len(text.encode())) > MOST_BYTES:
        raise UserError(f"a page of this network would have {size / 1e6:.1f} MB; the most is {MOST_BYTES / 1e6:.0f} MB")
    return text


def policy(style: str, *scripts: str) -> str:
    """The Content-Security-Policy under which these alone run, and nothing is loaded from anywhere."""

    def sha256(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    allowed = {
        "default-src": "'none'",
        "script-src": " ".join(map(sha256, scripts)),
        "style-src": sha256(style),
        "img-src": "data:",
        "worker-src": "blob:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{what} {where}" for what, where in allowed.items())
