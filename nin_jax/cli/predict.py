"""What images show, as a trained network sees it.

nin-jax predict IMAGE... (--model=NAME | --run=DIR) [--detect] [--maps=DIR] [--json]

One line an image: its file, then the five most probable classes with their probabilities in per cent. With --json it is one
JSON object an image: "image", "name", "index", "probability", "top" (the five, each with name, index and probability), and
with --maps "map": the image under the evidence for its class (paper section 3.2), a PNG in that folder.

With --detect a line says where things are: class, probability or score, and box (x0 y0 x1 y1, in pixels of the image), for
each of five at most; with --json they are "objects", each with "name", "score" and "box", and --maps writes the image with
its boxes. --run may then name a run of nin_jax.detection.main too.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from nin_jax.arguments import Parser
from nin_jax.cli import network
from nin_jax.console import plain
from nin_jax.errors import UserError
from nin_jax.storage import expanded


def main() -> None:
    """Runs the command line above."""
    parser = Parser("nin-jax predict", __doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    network.add_flags(parser)
    parser.add_argument("--maps", metavar="DIR", help="write each image under the evidence for its class")
    parser.add_argument("--detect", action="store_true", help="say where things are, by boxes")
    parser.add_argument("--json", action="store_true", help="one JSON object an image")
    given = parser.parse(sys.argv[1:])
    if given.detect:
        from nin_jax.cli import detect  # it imports scikit-learn, which takes a second

        detect.run(given.images, detect.network(given), given.maps, given.json)
        return
    if given.run and (expanded(given.run) / "detector.npz").is_file():
        raise UserError(f"--run={given.run} is a run of detection: it answers with --detect")
    classifier = network.load(given)
    predictions = classifier.classify(given.images)
    maps: list[Path | None] = [None] * len(predictions)
    if given.maps:
        folder = expanded(given.maps)
        for i, (image, found) in enumerate(zip(given.images, predictions, strict=True)):
            evidence = classifier.overlay(image, found.index)
            maps[i] = network.save_picture(evidence, folder, f"{Path(image).stem}-evidence", maps)
    for image, found, file in zip(given.images, predictions, maps, strict=True):
        if given.json:
            top = [guess._asdict() for guess in found.top]
            whole = {"image": image} | found._asdict() | {"top": top} | ({"map": str(file)} if file else {})
            print(json.dumps(whole))
        else:
            print(plain(f"{image}: {', '.join(f'{name} {100 * p:.2f} %' for name, _, p in found.top)}"))
