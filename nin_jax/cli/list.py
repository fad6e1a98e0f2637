"""What there is: trained networks, models, experiments and data sets.

nin-jax list [PATTERN] [--json]      PATTERN is a name or a part of it, with * and ? if you like
"""

from __future__ import annotations

import fnmatch
import itertools
import json
import sys

import nin_jax
from nin_jax import config, registry
from nin_jax.arguments import Parser
from nin_jax.errors import UserError, nearest
from nin_jax.training import pretrained

# What each kind of name is for.
KINDS = {
    "pretrained": "trained networks: nin-jax predict IMAGE --model=NAME",
    "models": "models: nin_jax.create_model(NAME), --config.model.name=NAME",
    "experiments": "experiments: nin-jax train NAME",
    "datasets": "data sets: --config.dataset=NAME",
}


def names(pattern: str = "*") -> dict[str, list[str]]:
    """The names of each kind that a pattern fits. Raises `UserError` where it fits none."""
    every = {
        "pretrained": nin_jax.list_pretrained(),
        "models": nin_jax.list_models(),
        "experiments": list(config.experiments()),
        "datasets": registry.names("datasets"),
    }
    whole = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    found = {kind: fnmatch.filter(some, whole) for kind, some in every.items()}
    if not any(found.values()):
        raise UserError(
            f"PATTERN={pattern}: nothing is called that; {nearest(pattern, itertools.chain(*every.values()))}"
        )
    return found


def main() -> None:
    """Runs the command line above."""
    parser = Parser("nin-jax list", __doc__)
    parser.add_argument("pattern", nargs="?", default="*", metavar="PATTERN")
    parser.add_argument("--json", action="store_true", help="one JSON object: a list of names for each kind")
    given = parser.parse(sys.argv[1:])
    found = names(given.pattern)
    if given.json:
        print(json.dumps(found))
        return
    for kind, some in found.items():
        if some:
            lines = map(measured, some) if kind == "pretrained" else some
            print("\n  ".join([KINDS[kind], *lines]), end="\n\n")


def measured(name: str) -> str:
    """A trained network with what was measured of it."""
    facts = json.loads((pretrained.FOLDER / name / pretrained.CONFIG).read_text())
    size, error, examples = facts["parameters"], facts["error_pct"], facts["examples"]
    return f"{name}: test error {error:.2f} % of {examples:,}, {size:,} parameters"
