"""Logits, gradients and initial weights of fixed seeds, as they were recorded: other ones than before are a decision.

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

from tests.models.zoo import CASES, Case

GOLDEN = Path(__file__).with_name("golden.json")
BATCH = 9  # enough for the convolution theorem of `layers.cpu`


def numbers(case: Case) -> dict[str, Any]:
    """Logits in test and training, and of each parameter the sum of its absolute values and of its gradient's."""
    model, image = case.create(), case.images(BATCH)
    rngs = {"dropout": jax.random.key(1)}

    @jax.jit
    def run(image):
        variables = model.init(jax.random.key(0), image[:1], train=False)

        def loss(params):
            (logits, _), _ = model.apply(
                variables | {"params": params}, image, train=True, rngs=rngs, mutable=["batch_stats"]
            )
            return jnp.mean(jax.nn.logsumexp(logits, -1) - logits[:, 0]), logits

        gradients, trained = jax.grad(loss, has_aux=True)(variables["params"])
        evaluated, _ = model.apply(variables, image, train=False)
        size = jax.tree.map(lambda a: jnp.sum(jnp.abs(a)), (variables["params"], gradients))
        return evaluated[:3], trained[:3], *size

    evaluated, trained, start, gradients = run(image)
    by_path = {
        "/".join(path): [float(f"{value:.7g}"), float(f"{flatten_dict(gradients)[path]:.7g}")]
        for path, value in flatten_dict(start).items()
    }
    rounded = {what: np.round(np.float64(x), 7).tolist() for what, x in (("test", evaluated), ("training", trained))}
    return rounded | {"parameters and gradients": by_path}


@pytest.mark.parametrize("name", CASES)
def test_numbers_of_a_fixed_seed_are_as_before(name):
    expected, actual = json.loads(GOLDEN.read_text())[name], numbers(CASES[name])
    for what in ("test", "training"):
        logits = np.array(expected[what])
        assert np.abs(logits).max() > 0.01
        np.testing.assert_allclose(actual[what], logits, rtol=0, atol=2e-5 * np.abs(logits).max(), err_msg=what)
    sizes = expected["parameters and gradients"]
    assert list(actual["parameters and gradients"]) == list(sizes)
    for path, (start, gradient) in actual["parameters and gradients"].items():
        assert start == pytest.approx(sizes[path][0], rel=1e-5), path
        assert gradient == pytest.approx(sizes[path][1], rel=1e-3, abs=1e-6), path


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({name: numbers(case) for name, case in CASES.items()}, indent=1) + "\n")
