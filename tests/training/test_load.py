"""Starting from the weights of another run."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import nin_jax
from nin_jax import main
from nin_jax.errors import UserError
from nin_jax.training.load import merge

NARROW = "--config.model.widths=((4, 3), (6,))"
WORDS = ["nin_jax", "--config=digits", "--config.epochs=1"]


def train(folder, *words, widths=NARROW, factors="--config.optimizer.learning_rate_factors=()"):
    main.run(main.parse([*WORDS, f"--workdir={folder}", widths, factors, *words]))
    return flatten_dict(jax.tree.map(np.asarray, nin_jax.load_run(str(folder)).params), sep="/")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transfer") / "first"
    return folder, train(folder)


def test_what_fits_is_taken_and_the_rest_is_named(trained, tmp_path, capsys):
    """At rate 0 a run ends with what it started from: all of the first run's but the last two layers, one of them wider."""
    folder, theirs = trained
    capsys.readouterr()
    words = [f"--config.init_from={folder}", "--config.optimizer.learning_rate=0.0"]
    mine = train(tmp_path / "second", *words, widths="--config.model.widths=((4, 3), (7,))")
    err = capsys.readouterr().err
    kept = {path for path in mine if not np.array_equal(mine[path], theirs[path])}
    assert {path.split("/")[1] for path in kept} == {"conv2", "cccp2"}
    said = next(line for line in err.splitlines() if "of their own" in line)
    for path in ("mlpconv2/conv2/kernel", "mlpconv2/conv2/bias", "mlpconv2/cccp2/kernel"):
        assert path in said
    assert "conv1" not in said
    assert "mlpconv2/cccp2/bias" not in said  # ten numbers in both


def test_a_resumed_run_does_not_need_the_other_one(trained, tmp_path):
    folder, _ = trained
    (tmp_path / "first").symlink_to(folder)
    words = [f"--config.init_from={tmp_path / 'first'}", "--config.epochs=2"]
    train(tmp_path / "second", *words)
    (tmp_path / "first").unlink()
    (tmp_path / "second/summary.json").unlink()
    train(tmp_path / "second", *words)


def test_a_factor_of_0_freezes(trained, tmp_path):
    folder, theirs = trained
    frozen = "--config.optimizer.learning_rate_factors=('mlpconv1/=0',)"
    mine = train(tmp_path / "second", f"--config.init_from={folder}", factors=frozen)
    same = {path for path in mine if np.array_equal(mine[path], theirs[path])}
    assert {path for path in mine if path.startswith("mlpconv1/")} <= same
    assert "mlpconv2/conv2/kernel" not in same


def test_the_average_starts_from_the_same_weights(trained, tmp_path):
    folder, theirs = trained
    words = ["--config.optimizer.average=0.5", "--config.optimizer.learning_rate=0.0"]
    mine = train(tmp_path / "second", f"--config.init_from={folder}", *words)
    for path, value in theirs.items():
        np.testing.assert_allclose(mine[path], value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("where", "said"), [("nowhere", "nowhere"), (".", "config.json cannot be read")])
def test_a_directory_without_a_run_is_a_mistake(where, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        train(tmp_path / "second", f"--config.init_from={where}")


def test_a_network_that_has_nothing_in_common_is_a_mistake(trained, tmp_path):
    with pytest.raises(UserError, match="no parameter of that run fits"):
        train(
            tmp_path / "second",
            f"--config.init_from={trained[0]}",
            "--config.model.kernels=(5, 5)",
            widths="--config.model.widths=((14, 13), (16, 16))",
        )


def test_merge_goes_by_path_and_shape():
    new = {"params": {"a": {"kernel": np.zeros((2, 3))}, "b": {"bias": np.zeros(2)}, "c": {"bias": np.zeros(1)}}}
    old = {"params": {"a": {"kernel": np.ones((2, 3))}, "b": {"bias": np.ones(3)}, "d": {"bias": np.ones(1)}}}
    merged, kept, unused = merge(new | {"batch_stats": {}}, old | {"batch_stats": {}})
    assert np.all(merged["params"]["a"]["kernel"] == 1)
    assert np.all(merged["params"]["b"]["bias"] == 0)
    assert (kept, unused) == (["b/bias", "c/bias"], ["b/bias", "d/bias"])
    assert merged["batch_stats"] == {}
