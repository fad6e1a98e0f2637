"""Checkpoints of states that have got a part since they were saved; the rest is in test_train.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nin_jax.devices.mesh import make_mesh, replicated_like
from nin_jax.errors import UserError
from nin_jax.runs.checkpoint import Checkpoints
from nin_jax.training.step import TrainState

SAVED = {"step": jnp.int32(3), "params": {"a": jnp.arange(4.0)}, "opt_state": (jnp.zeros(2), ())}


@flax.struct.dataclass
class OlderState:
    """As it was before batch normalisation and averages."""

    step: Any
    params: Any
    opt_state: Any


def saved(workdir: Path, state: Any) -> Path:
    checkpoints = Checkpoints(workdir)
    checkpoints.save(3, state, {"x": 1})
    checkpoints.close()
    return workdir


def restored(workdir: Path, like: Any) -> Any:
    found = Checkpoints(workdir).restore(replicated_like(like, make_mesh()))
    assert found is not None
    assert (found[0], found[2]) == (3, {"x": 1})
    return found[1]


def assert_equal(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_checkpoint_from_before_a_part_was_added_is_good(tmp_path: Path) -> None:
    assert_equal(restored(saved(tmp_path, OlderState(**SAVED)), TrainState(**SAVED)), TrainState(**SAVED))
    assert not list((tmp_path / "checkpoints").glob("broken*"))


def test_all_parts_come_back(tmp_path: Path) -> None:
    state = TrainState(**SAVED, batch_stats={"mean": jnp.ones(3)})
    state = state.replace(average=jax.tree.map(lambda a: a + 1, state.current))
    assert_equal(restored(saved(tmp_path, state), state), state)


def test_a_part_that_is_not_there_is_named_and_nothing_set_aside(tmp_path: Path) -> None:
    like = TrainState(**SAVED, batch_stats={"mean": jnp.ones(3)})
    saved(tmp_path, TrainState(**SAVED))
    with pytest.raises(UserError, match=r"another network: \.batch_stats\['mean'\] is not there in it"):
        restored(tmp_path, like)
    assert (tmp_path / "checkpoints/3").is_dir()
