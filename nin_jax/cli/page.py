"""One HTML file in which a trained network classifies images, offline, wherever there is a browser.

nin-jax page (--model=NAME | --run=DIR) -o FILE.html
"""

from __future__ import annotations

import sys

from nin_jax import page
from nin_jax.arguments import Parser
from nin_jax.cli import network
from nin_jax.console import say


def main() -> None:
    """Runs the command line above."""
    parser = Parser("nin-jax page", __doc__)
    network.add_flags(parser)
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="is replaced")
    given = parser.parse(sys.argv[1:])
    file = page.write(network.load(given), given.output)
    say(f"{file}: {file.stat().st_size / 1e6:.2f} MB; open it in a browser")
