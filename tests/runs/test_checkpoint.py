"""What a checkpoint gives back, and under which names of directories; damage is in tests/faults."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nin_jax.devices.mesh import make_mesh, replicated_like
from nin_jax.errors import UserError
from nin_jax.runs.checkpoint import Checkpoints
from nin_jax.training.step import TrainState

SAVED = {"step": jnp.int32(3), "params": {"a": jnp.arange(4.0)}, "opt_state": (jnp.zeros(2), ())}


def saved(workdir: Path, state: Any) -> Path:
    checkpoints = Checkpoints(workdir)
    checkpoints.save(3, state, {"x": 1}, wait=True)
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


def test_all_parts_come_back(tmp_path: Path) -> None:
    state = TrainState(**SAVED, batch_stats={"mean": jnp.ones(3, jnp.bfloat16)})
    state = state.replace(average=jax.tree.map(lambda a: a + 1, state.current))
    assert_equal(restored(saved(tmp_path, state), state), state)


def test_a_part_that_is_not_there_is_named_and_nothing_set_aside(tmp_path: Path) -> None:
    like = TrainState(**SAVED, batch_stats={"mean": jnp.ones(3)})
    saved(tmp_path, TrainState(**SAVED))
    with pytest.raises(UserError, match=r"another network: batch_stats/mean is not there in it"):
        restored(tmp_path, like)
    assert (tmp_path / "checkpoints/3").is_dir()


NAMES = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=20).filter(
        lambda name: name not in (".", "..")
    )
    | st.text("[]\\*?{}%#: $~'\"\n!-", min_size=1, max_size=8),
    min_size=1,
    max_size=3,
)


@given(NAMES)
@example(["a[1]"])
@example(["b\\"])
@example(["[!a]", "{x,y}", "**"])
@example(["gs:"])
@example(["\udcff"])  # a byte that is no UTF-8
def test_no_character_of_a_path_changes_what_a_checkpoint_is(names: list[str]) -> None:
    """Saved, listed, read back and restored, and nothing lies anywhere else."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder, *names)
        state = {"w": jnp.arange(3.0)}
        assert_equal(restored(saved(workdir, state), state), state)
        assert Checkpoints(workdir, read_only=True).steps() == [3]
        files = [os.path.join(where, name) for where, _, names in os.walk(folder) for name in names]
        assert files
        assert all(file.startswith(f"{workdir}/checkpoints/3/") for file in files)


def test_what_was_cut_short_is_removed_and_never_listed(tmp_path: Path) -> None:
    """A save and a removal that were killed; and names that are no step's are left alone."""
    workdir = saved(tmp_path, {"w": jnp.arange(3.0)})
    for name in (".4.new", ".2.old", "05", "\u0665", "notes"):
        (workdir / "checkpoints" / name).mkdir()
    assert Checkpoints(workdir, read_only=True).steps() == [3]
    assert (workdir / "checkpoints" / ".4.new").is_dir()
    Checkpoints(workdir)
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == sorted(["05", "3", "notes", "\u0665"])
