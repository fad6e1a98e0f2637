"""A trained network as a file for somewhere else; docs/export.md says what each format is good for.

nin-jax export (--model=NAME | --run=DIR) --format=onnx|stablehlo|safetensors|pytorch -o FILE [--maps=NAME,...] [--no-preprocessing]
"""

from __future__ import annotations

import sys

from nin_jax.arguments import Parser
from nin_jax.cli import network
from nin_jax.console import say


def main() -> None:
    """Runs the command line above."""
    parser = Parser("nin-jax export", __doc__)
    network.add_flags(parser)
    parser.add_argument("--format", required=True)
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="is replaced")
    parser.add_argument(
        "--maps", default="", metavar="NAME,...", help="maps that it gives besides the logits: class_maps"
    )
    parser.add_argument(
        "--no-preprocessing", action="store_true", help="it takes float32 that are preprocessed already"
    )
    given = parser.parse(sys.argv[1:])
    from nin_jax.weights.export import export

    maps = [name for name in given.maps.split(",") if name]
    classifier = network.load(given)
    file = export(classifier, given.format, given.output, preprocessing=not given.no_preprocessing, maps=maps)
    say(f"{file}: {file.stat().st_size / 1e6:.2f} MB")
