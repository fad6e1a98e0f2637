"""The project's experiments: each argument says what its file says it does, and each of them describes and trains."""

from __future__ import annotations

import functools
import json
import runpy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import AxisType

from nin_jax import config as config_lib
from nin_jax import main, registry
from nin_jax.config import experiment, to_dict
from nin_jax.data import fitted, memory
from nin_jax.devices.mesh import AXIS, replicate
from nin_jax.devices.replicas import compile_replicas
from nin_jax.paper import tables
from nin_jax.training.build import Run
from nin_jax.training.describe import describe
from nin_jax.training.state import init_state, init_variables
from nin_jax.training.step import train_steps

ABLATIONS = [name for name in config_lib.experiments() if name.startswith("ablations/")]


def parse(config: str, *words: str) -> Any:
    return main.parse(["nin_jax", f"--config={config}", *words]).config


def module(name: str) -> dict[str, Any]:
    return runpy.run_path(str(config_lib.experiments()[name]), run_name="experiment")


def changed(a: Any, b: Any) -> set[str]:
    return {line.split(":")[0] for line in config_lib.differences(to_dict(a), to_dict(b))}


def distinct(*keys: str) -> list[str]:
    """The first recipe of each value of these keys, such as "optimizer.momentum"; without those that need a folder.

    A key that only some models have is {} for the others.
    """
    found: dict[str, str] = {}
    for name, plain in tables.recipes().items():
        if not name.startswith(("experiments/folder.py", "experiments/hcp_voc.py")):
            values = [functools.reduce(lambda part, word: part.get(word, {}), key.split("."), plain) for key in keys]
            found.setdefault(json.dumps(values), name)
    return list(found.values())


@pytest.mark.parametrize("config", tables.recipes())
def test_every_recipe_is_a_command(config: str) -> None:
    """What its file returns passes the check, and is what the table's command runs."""
    assert tables.with_defaults(parse(config)) == tables.recipes()[config]
    assert tables.command(config) == f"`python -m nin_jax.main --config={config}`"


@pytest.mark.parametrize(("name", "last"), [("cifar10", 40_000), ("cifar100", 40_000), ("mnist", 50_000)])
@pytest.mark.parametrize("base", [None, "release", "plateau"])
def test_tune_validates_on_the_last_10000(name: str, last: int, base: str | None) -> None:
    tuned, whole = experiment(name, f"{base},tune" if base else "tune"), experiment(name, base)
    assert changed(whole, tuned) == {"train_split", "eval_split"}
    assert (whole.train_split, whole.eval_split) == ("train", "test")
    assert (tuned.train_split, tuned.eval_split) == (f"train[:{last}]", f"train[{last}:]")
    info = Run(config_lib.check(whole)).info
    assert info.splits["train"] - last == 10_000


def test_svhn_never_trains_on_its_validation_pictures() -> None:
    assert changed(experiment("svhn"), experiment("svhn", "tune")) == {"eval_split"}
    assert experiment("svhn").train_split == "paper_train"
    assert experiment("svhn", "tune").eval_split == "paper_validation"


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "svhn"])
@pytest.mark.parametrize("base", [None, "release"])
def test_plateau_replaces_the_drops_and_nothing_else(name: str, base: str | None) -> None:
    """Two drops to 1 % of the rate, when training says so."""
    plateau, fixed = experiment(name, f"{base},plateau" if base else "plateau"), experiment(name, base)
    assert changed(fixed, plateau) == {"schedule.boundaries_epochs", "schedule.plateau_epochs"}
    assert len(fixed.schedule.boundaries_epochs) == plateau.schedule.plateau_drops == 2
    assert plateau.schedule.boundaries_epochs == ()
    assert plateau.schedule.factor**plateau.schedule.plateau_drops == pytest.approx(0.01)


@pytest.mark.parametrize("arg", ["caffe", "caffe,tune", "tune,release", "release,", "", "Release"])
@pytest.mark.parametrize("name", ["cifar100", "mnist", "svhn"])
def test_arguments_that_were_never_published_are_named(name: str, arg: str) -> None:
    with pytest.raises(config_lib.UserError) as caught:
        parse(f"{name}:{arg}")
    said = str(caught.value)
    assert f"unknown argument {arg!r}: " in said
    assert "\n" not in said
    assert "plateau, plateau,tune, release, release,plateau" in said


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_changes_what_its_rows_say(name: str) -> None:
    """Each row differs from the base in just its keys; one row, and no argument, is the base; no two rows are the same."""
    rows = module(name)["ROWS"]
    base, same = experiment(name), []
    for row, overrides in rows.items():
        config = experiment(name, row)
        if config.model.name == base.model.name:
            assert changed(base, config) == set(overrides)
            same += [row] * (not overrides)
    assert len(same) == 1
    assert len({json.dumps(to_dict(experiment(name, row))) for row in rows}) == len(rows)


@pytest.mark.parametrize("name", ABLATIONS)
def test_a_sweep_is_every_row_with_every_seed(name: str) -> None:
    space = module(name)
    flags = space["sweep"](seeds=iter([3, 4]))
    configs = [parse(f["config"], *(f"--{k}={v}" for k, v in f.items() if k != "config")) for f in flags]
    wanted = [(row, seed) for row in space["ROWS"] for seed in (3, 4)]
    assert [c.seed for c in configs] == [seed for _, seed in wanted]
    for (row, _), config in zip(wanted, configs, strict=True):
        assert changed(experiment(name, row), config) <= {"seed"}
    assert len(space["sweep"]()) == 5 * len(space["ROWS"])


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_long_form_of_fast_is_longer_and_nothing_else(name: str) -> None:
    short, long = experiment(name, "fast"), experiment(name, "fast100")
    assert changed(short, long) == {"epochs"}
    assert (short.epochs, long.epochs) == (30, 100)


def test_the_rows_of_table_5_differ_in_their_heads() -> None:
    """The dropout that comes and goes is that before the last layer; the one between mlpconv layers stays."""
    rows = {row: experiment("ablations/gap_vs_fc", row).model for row in module("ablations/gap_vs_fc")["ROWS"]}
    assert [m.head for m in rows.values()] == ["gap", "fc", "fc_dropout"] * 2
    assert {rows[row].dropout for row in ("gap", "fc", "fc_dropout")} == {0.5}
    assert {rows[row].local_maps for row in rows if row.startswith("conv_")} == {10}


def parameters(name: str, row: str) -> int:
    run = Run(config_lib.check(experiment(name, row)))
    params = jax.eval_shape(lambda: init_variables(run.model, 0, run.info.image_shape)["params"])
    return sum(p.size for p in jax.tree.leaves(params))


def test_the_linear_network_is_as_large_as_the_papers() -> None:
    """Counts of the docstring, by hand: kernel^2 x maps in x maps out + maps out of each layer."""
    counts = {row: parameters("ablations/mlp_depth", row) for row in module("ablations/mlp_depth")["ROWS"]}

    def total(*layers: tuple[int, int, int]) -> int:
        return sum(k * k * maps_in * out + out for k, maps_in, out in layers)

    assert counts == {
        "cccp_2": 966_986,
        "cccp_1": total((5, 3, 192), (1, 192, 96), (5, 96, 192), (1, 192, 192), (3, 192, 192), (1, 192, 10)),
        "cccp_0": total((5, 3, 96), (5, 96, 192), (3, 192, 10)),
        "linear": total((5, 3, 193), (5, 193, 193), (3, 193, 10)),
    }
    assert abs(counts["linear"] / counts["cccp_2"] - 1) < 0.01
    text = config_lib.experiments()["ablations/mlp_depth"].read_text()
    assert all(f"{count:,}" in text for count in counts.values())

    reduced = [parameters("ablations/reduced", row) for row in ("gap", "linear")]
    assert reduced[1] == total((5, 3, 47), (5, 47, 47), (3, 47, 10))
    assert abs(reduced[1] / reduced[0] - 1) < 0.02
    text = config_lib.experiments()["ablations/reduced"].read_text()
    assert all(f"{count:,}" in text for count in reduced)


@pytest.mark.parametrize("config", distinct("dataset", "model.name"))
def test_every_network_is_described(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(parse(config))
    totals = describe(run)
    assert totals["parameters"] == sum(p.size for p in jax.tree.leaves(run.variables["params"]))
    assert f"parameters: {totals['parameters']:,} (" in capsys.readouterr().out


@functools.cache
def noise(preprocess: tuple[str, ...], shape: tuple[int, int, int]) -> tuple[np.ndarray, fitted.Stats]:
    """64 pictures, and the preprocessing fitted on them, once for all recipes that have the same."""
    images = np.random.default_rng(0).integers(0, 256, (64, *shape)).astype(np.uint8)
    return images, fitted.fit(registry.calls("preprocess", preprocess), images)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [*distinct("model.name", "model.head", "model.batch_norm"), "experiments/ablations/transfer.py:frozen"],
)
def test_every_kind_of_network_of_a_recipe_makes_two_updates(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On noise of the data set's shape, at the recipe's own widths with a batch of 2: every parameter moves that may."""
    mesh = jax.make_mesh((1,), (AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    monkeypatch.setattr("nin_jax.training.build.make_mesh", lambda: mesh)
    run = Run(parse(config, "--config.batch_size=2"))
    images, fitted = noise(tuple(str(call) for call in run.config.preprocess), run.info.image_shape)
    labels = (np.arange(64) % run.info.classes).astype(np.int32)
    if run.info.multilabel:
        labels = 2 * np.eye(run.info.classes, dtype=np.int32)[labels] - 1
    stats = replicate(fitted, mesh)
    recipe, seed = run.recipe(2), replicate(jnp.uint32(0), mesh)
    state = replicate(jax.jit(lambda s: init_state(recipe, s, run.info.image_shape))(seed), mesh)
    before = jax.tree.map(np.asarray, state.params)
    source = memory.Shuffled(
        replicate(memory.Arrays(memory.flat(images), labels), mesh), run.info.image_shape, 2, 0, mesh
    )
    arguments = (source.at(0), stats, seed, replicate(np.int32(1), mesh))
    update = compile_replicas(train_steps(recipe, source.draw), (state, *arguments), mesh, run.config.mapper)
    for _ in range(2):
        state, metrics = update(state, *arguments)
        assert np.isfinite(metrics["loss"]).all()
    assert int(state.step) == 2
    moved = jax.tree.map(lambda a, b: bool(np.any(a != np.asarray(b))), before, state.params)
    frozen = [rule.pattern for rule in run.config.optimizer.learning_rate_factors if rule.number == 0]
    for path, did in flatten_dict(moved, sep="/").items():
        assert did != any(pattern.search(path) for pattern in frozen), path
