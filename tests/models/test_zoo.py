"""What holds for every model and head: export for other devices, and that Flax's tools see each layer."""

from __future__ import annotations

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict

from nin_jax import registry
from nin_jax.errors import UserError
from tests.models.zoo import CASES


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"head": "GAP"}, "model nin: head='GAP': (valid: fc, fc_dropout, gap)"),
        ({"dropout_kind": "caffe"}, "model nin: dropout_kind='caffe'"),
        ({"kernel": (5, 5, 3)}, "model nin has no argument 'kernel': did you mean 'kernels'?"),
    ],
)
def test_a_wrong_argument_is_named(arguments, said):
    with pytest.raises(UserError, match=re.escape(said)):
        registry.create("nin", 10, **arguments)
    assert registry.create("nin", 10, dtype=jnp.bfloat16, axis_name="data").axis_name == "data"


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", ["nin, batch_norm", "nin_imagenet"])
def test_capture_intermediates_sees_every_layer(name, train, monkeypatch):
    """Also where an evaluation would compute a few images at a time."""
    monkeypatch.setattr("nin_jax.layers.cpu.tuning.PIECE_POSITIONS", (1, 2**14))
    monkeypatch.setattr("nin_jax.layers.cpu.tuning.PIECES_FROM_BYTES", 0)
    case = CASES[name]
    model, images = case.create(), case.images(2)
    variables = case.variables(model)

    def captured(variables, images):
        rngs = {"dropout": jax.random.key(1)}
        call = {"train": train, "rngs": rngs, "mutable": ["intermediates", "batch_stats"]}
        return model.apply(variables, images, **call, capture_intermediates=True)

    (_, maps), state = jax.eval_shape(captured, variables, images)
    outputs = {path[:-1]: values[-1] for path, values in flatten_dict(state["intermediates"]).items()}
    for module in {path[:-1] for path in flatten_dict(variables["params"])}:
        assert outputs[module].shape[0] == 2
        if module[-1] in maps:
            assert outputs[module].shape == maps[module[-1]].shape


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", ["nin, batch_norm", "nin_imagenet, fc_dropout"])
def test_tabulate_shows_every_layer(name, train):
    case = CASES[name]
    model, images = case.create(), case.images(1)
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    table = nn.tabulate(model, rngs, console_kwargs={"width": 400, "force_terminal": False})(images, train=train)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))["params"]
    for path in flatten_dict(params):
        assert "/".join(path[:-1]) in table
