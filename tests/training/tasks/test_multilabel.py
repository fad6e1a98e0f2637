"""HCP's loss against NumPy, and mean average precision against a count by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from nin_jax.errors import UserError
from nin_jax.training.tasks import multilabel


def test_the_loss_is_the_squared_distance_to_the_share_of_each_label():
    draw = np.random.default_rng(0)
    logits = draw.standard_normal((40, 6), np.float32) * 3
    labels = draw.choice([-1, 0, 1], (40, 6)).astype(np.int32)
    labels[0] = -1  # nothing in it
    result = multilabel.per_example(jnp.asarray(logits), jnp.asarray(labels))
    for i in range(40):
        p, there = scipy.special.softmax(logits[i].astype(np.float64)), labels[i] == 1
        wanted = there / max(there.sum(), 1)
        counted = labels[i] != 0
        assert result["loss"][i] == pytest.approx(((p - wanted)[counted] ** 2).sum(), rel=1e-4)
        ranked = [k for k in np.argsort(-logits[i]) if counted[k]]
        assert result["error"][i] == (0.0 if ranked and there[ranked[0]] else 1.0)
    gradient = jax.grad(lambda x: multilabel.objective(x, jnp.asarray(labels)).sum())(jnp.asarray(logits))
    assert np.isfinite(gradient).all()


def test_precision_of_a_split_leaves_out_difficult_objects_and_absent_classes():
    """Class 0: ranked present, difficult, absent, present: precisions 1 and 2/3 at recalls 1/2 and 1. Class 1 is in no image."""
    logits = np.log(np.array([[0.8, 0.2], [0.7, 0.3], [0.6, 0.4], [0.5, 0.5]]))
    labels = np.array([[1, -1], [0, -1], [-1, -1], [1, -1]], np.int32)
    found = multilabel.of_split(logits.astype(np.float32), labels)
    assert found["map"] == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    assert found["area_map"] == pytest.approx((1 + 2 / 3) / 2)
    assert found["error"] == pytest.approx(1 - found["map"])
    with pytest.raises(UserError, match="no picture has a label"):
        multilabel.of_split(logits, np.full((4, 2), -1))
