"""Logits and initial weights of fixed seeds, as they were recorded: other ones than before are a decision.

`python -m tests.models.test_golden` records them again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from tests.models.zoo import CASES, NAMES, Case

GOLDEN = Path(__file__).with_name("golden.json")
BATCH = 9  # enough for the convolution theorem of `layers.cpu`


def numbers(case: Case) -> dict[str, Any]:
    """Logits in test and training of the first images, and of each parameter the sum of its absolute values."""
    model, image = case.create(), case.images(BATCH)

    @jax.jit
    def run(image):
        variables = model.init(jax.random.key(0), image[:1], train=False)
        rngs = {"dropout": jax.random.key(1)}
        (trained, _), _ = model.apply(variables, image, train=True, rngs=rngs, mutable=["batch_stats"])
        evaluated, _ = model.apply(variables, image, train=False)
        return evaluated[:3], trained[:3], jax.tree.map(lambda p: jnp.sum(jnp.abs(p)), variables["params"])

    evaluated, trained, sizes = run(image)
    rounded = {what: np.round(np.float64(x), 7).tolist() for what, x in (("test", evaluated), ("training", trained))}
    return rounded | {
        "parameters": {"/".join(path): float(f"{size:.7g}") for path, size in flatten_dict(sizes).items()}
    }


@pytest.mark.parametrize("name", NAMES)
def test_numbers_of_a_fixed_seed_are_as_before(name):
    expected, actual = json.loads(GOLDEN.read_text())[name], numbers(CASES[name])
    assert list(actual["parameters"]) == list(expected["parameters"])
    assert actual["parameters"] == pytest.approx(expected["parameters"], rel=1e-5)
    for what in ("test", "training"):
        logits = np.array(expected[what])
        assert np.abs(logits).max() > 0.01
        np.testing.assert_allclose(actual[what], logits, rtol=0, atol=2e-5 * np.abs(logits).max(), err_msg=what)


def record() -> None:
    """Writes the file, a line for each part of a network."""

    def block(part: dict[str, Any]) -> str:
        return ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in part.items())

    parts = [f" {json.dumps(name)}: {{\n{block(numbers(case))}\n }}" for name, case in CASES.items()]
    GOLDEN.write_text("{\n" + ",\n".join(parts) + "\n}\n")


if __name__ == "__main__":
    record()
