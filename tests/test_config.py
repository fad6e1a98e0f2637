"""The strict check of a config, its fingerprint and its JSON; entries by name and their calls."""

from __future__ import annotations

import dataclasses
import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from ml_collections import ConfigDict

from nin_jax import config as config_lib
from nin_jax import registry, schema
from nin_jax.config import check, differences, experiment, fingerprint, to_dict
from nin_jax.errors import UserError

ROOT = Path(__file__).parents[1]


def leaves(config: ConfigDict, where: str = "") -> list[str]:
    """Every key that holds a value, such as "optimizer.momentum"."""
    found = []
    for key, value in config.items():
        found += leaves(value, f"{where}{key}.") if isinstance(value, ConfigDict) else [where + key]
    return found


LEAVES = leaves(experiment("digits"))
CHANGED = {
    "init_from": "runs/other",  # another legal value of each kind
    "eval.views": "3-view",
    "dataset": "synthetic",
    "data_dir": "/elsewhere",
    "train_split": "train[:10]",
    "eval_split": "train",
    "preprocess": ("gcn()",),
    "augment": ("flip()",),
    "precision": "bfloat16",
    "bad_records": "skip",
    "mapper": "shard_map",
    "model.pools": ("avg", "max"),
    "model.dropout_kind": "classic",
    "model.head": "fc",
    "model.deviations": (0.05,),
    "optimizer.learning_rate_factors": ("bias=2",),
    "optimizer.max_norms": ("kernel=1.9",),
    "schedule.decay": "linear",
    "optimizer.average": 0.9,
}


def with_values(**changes: Any) -> ConfigDict:
    config = experiment("digits").copy_and_resolve_references()
    with config.ignore_type():
        config.update_from_flattened_dict(changes)
    return config


def changed(key: str) -> ConfigDict:
    """The digits experiment with one key changed."""
    value = experiment("digits")
    for part in key.split("."):
        value = value[part]
    if key in CHANGED:
        other = CHANGED[key]
    elif isinstance(value, bool):
        other = not value
    elif isinstance(value, (int, float)):
        other = value / 2 if isinstance(value, float) and value else value + 1
    else:
        other = (*value[:-1], value[-1][:1] if isinstance(value[-1], tuple) else value[-1] + 2)
    return with_values(**{key: other})


@pytest.mark.parametrize("key", [key for key in LEAVES if key not in ("task", "model.name")])
def test_the_fingerprint_tells_runs_apart(key: str) -> None:
    """Each key that makes the run changes it, those in NOT_THE_RUN do not; `differences` names the key."""
    one, other = check(experiment("digits")), check(changed(key))
    assert (fingerprint(one) == fingerprint(other)) == (key in config_lib.NOT_THE_RUN)
    assert [line.split(":")[0] for line in differences(to_dict(one), to_dict(other))] == [key]


def test_not_the_run_are_keys() -> None:
    assert set(config_lib.NOT_THE_RUN) <= set(LEAVES)


def test_the_fingerprint_does_not_depend_on_the_process_or_on_order(clean_env: dict[str, str]) -> None:
    config = experiment("cifar100", "release")
    shuffled = ConfigDict()
    for key in random.Random(0).sample(list(config), len(config)):
        shuffled[key] = config[key]
    code = "from nin_jax.config import *; print(fingerprint(experiment('cifar100', 'release')))"
    others = [
        subprocess.run(
            [sys.executable, "-c", code], env=clean_env | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    ]  # fmt: skip
    assert {fingerprint(config), fingerprint(check(config)), fingerprint(shuffled), *others} == {fingerprint(config)}


@pytest.mark.parametrize("name", list(config_lib.experiments()))
def test_config_json_is_the_config(name: str) -> None:
    """What is read back from config.json differs in nothing."""
    config = check(experiment(name))
    text = json.dumps(to_dict(config), indent=1, sort_keys=True)
    assert differences(json.loads(text), to_dict(config)) == []


def test_differences_of_keys_that_one_side_lacks() -> None:
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1}, "d": 3}) == ["a.c: 2, now None", "d: None, now 3"]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("seed", "1", "seed='1': must be of type int"),
        ("seed", True, "seed=True: must be of type int"),
        ("batch_size", 64.0, "batch_size=64.0: must be of type int"),
        ("train_split", None, "train_split=None: must be of type str"),
        ("dataset", None, "dataset=None: must be of type str"),
        ("data_dir", 3, "data_dir=3: must be of type str"),
        ("preprocess", "gcn()", "preprocess='gcn()': must be of type tuple"),
        ("augment", (1,), "augment=(1,): must be strings such as 'gcn(scale=55)', not 1"),
        ("optimizer", 3, "optimizer=3: must be a section with average, clip_norm, learning_rate"),
        ("optimizer.momentum", "x", "optimizer.momentum='x': must be of type float"),
        ("optimizer.learning_rate_factors", ("(=1",), "'(=1' is not 'PATTERN=FACTOR'"),
        ("optimizer.learning_rate_factors", (1,), "1 is not 'PATTERN=FACTOR'"),
        ("optimizer.learning_rate_factors", (b"x=1",), "is not 'PATTERN=FACTOR'"),
        ("optimizer.max_norms", ("(=1",), "optimizer.max_norms=('(=1',): '(=1' is not 'PATTERN=NORM'"),
        ("optimizer.max_norms", ("kernel=-1",), "'kernel=-1': the norm must be finite and above 0"),
        ("optimizer.max_norms", ("kernel=0",), "'kernel=0': the norm must be finite and above 0"),
        ("optimizer.max_norms", ("kernel=nan",), "'kernel=nan': the norm must be finite and above 0"),
        ("optimizer.average", 1.0, "optimizer.average=1.0: must be 0 or more, and less than 1"),
        ("optimizer.average", float("nan"), "optimizer.average=nan: must be 0 or more, and less than 1"),
        ("optimizer.momentum_final", -0.1, "optimizer.momentum_final=-0.1: must be 0 or more"),
        (
            "optimizer.momentum_epochs",
            float("inf"),
            "optimizer.momentum_epochs=inf: must be 0 or more",
        ),
        ("schedule.decay", "cosin", "schedule.decay='cosin': did you mean 'cosine'?"),
        ("schedule.final_factor", -1.0, "schedule.final_factor=-1.0: must be 0 or more"),
        ("schedule.final_epochs", float("nan"), "schedule.final_epochs=nan: must be 0 or more"),
        ("schedule.plateau_epochs", -1, "schedule.plateau_epochs=-1: must be 0 or more"),
        ("schedule.plateau_epochs", 1.5, "schedule.plateau_epochs=1.5: must be of type int"),
        ("schedule.plateau_drops", 0, "schedule.plateau_drops=0: must be 1 or more"),
        ("schedule.boundaries_epochs", (True,), "epochs, each above 0"),
        ("schedule.boundaries_epochs", (float("inf"),), "epochs, each above 0"),
        ("dataset", "digit", "unknown dataset 'digit': did you mean 'digits'?"),
        ("preprocess", ("gnc()",), "unknown preprocess op 'gnc': did you mean 'gcn'?"),
        ("keep", 0, "keep=0: must be 1 or more"),
        ("eval_every_epochs", -1, "eval_every_epochs=-1: must be 1 or more"),
        ("seed", 2**32, "seed=4294967296: must be from 0 to 2^32 - 1"),
        ("model", 3, "model.name must name a model"),
        ("model.name", 3, "model.name must name a model"),
        ("model.name", "os.path", "model 'os.path': the module has no Model"),
        ("model.name", "no.such", "model 'no.such': ModuleNotFoundError: No module named 'no'"),
        ("task", "os.path", "task 'os.path': the module has no objective"),
        ("model.heads", "gap", "model nin has no argument 'heads': did you mean 'head'?"),
        ("model.num_classes", 3, "model nin has no argument 'num_classes'"),
        ("model.head", "gab", "head='gab': did you mean 'gap'? (valid: fc, fc_dropout, gap)"),
        ("model.pools", ("max", "min"), "pools=('max', 'min'): (valid: avg"),
        ("model.dropout_kind", "modern", "dropout_kind='modern': (valid: classic, inverted)"),
        ("model.dropout", "half", "dropout='half': 'half' must be a finite number"),
        ("model.dropout", float("nan"), "dropout=nan: nan must be a finite number"),
        ("model.widths", (3, 4, 5), "widths=(3, 4, 5): 3 must be a tuple"),
        ("model.kernels", (3.0, 3, 3), "kernels=(3.0, 3, 3): 3.0 must be of type int"),
        ("model.relu_on_class_maps", 1, "relu_on_class_maps=1: 1 must be of type bool"),
    ],
)
def test_each_mistake_is_named(key: str, value: Any, said: str) -> None:
    with pytest.raises(UserError) as caught:
        check(with_values(**{key: value}))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"decay": "exponential", "final_factor": 0.0},
            "schedule.final_factor=0: an exponential decay never gets there",
        ),
        ({"plateau_epochs": 5, "factor": 0.0}, "schedule.factor=0.0: with schedule.plateau_epochs it must be between"),
        ({"plateau_epochs": 5, "factor": 1.0}, "schedule.factor=1.0: with schedule.plateau_epochs it must be between"),
    ],
)
def test_settings_that_do_not_go_together(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check(with_values(**{f"schedule.{key}": value for key, value in changes.items()}))


def test_keys_that_an_older_config_lacks_are_default() -> None:
    """In every section; what it has, stays."""
    config = check(experiment("cifar10"))
    plain = to_dict(config)
    for section, key in (("optimizer", "max_norms"), ("optimizer", "momentum_final"), ("schedule", "plateau_drops")):
        del plain[section][key]
    del plain["keep"]
    assert to_dict(check(config_lib.from_dict(plain))) == to_dict(config)


def test_an_integer_does_for_a_float() -> None:
    assert check(with_values(**{"optimizer.learning_rate": 1, "model.dropout": 0})).optimizer.learning_rate == 1


def test_an_unknown_experiment() -> None:
    with pytest.raises(UserError, match="unknown experiment 'cifar': did you mean 'cifar10'"):
        experiment("cifar")


class Opaque:
    """A value that no config holds."""


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=3)
    | st.sampled_from(["float32", "gcn()", "bias=2", "os.path", Opaque(), Opaque, len, {1, 2}, 10**40]),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
    max_leaves=5,
)  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*:FutureWarning")  # of a regular expression; it is the user's
@settings(max_examples=300)
@given(
    st.dictionaries(st.sampled_from([*LEAVES, "model", "optimizer", "schedule", "model.x", "x", "optimizer.x"]), ANYTHING, max_size=3),
    st.lists(st.sampled_from(list(experiment("digits"))), max_size=1),
)  # fmt: skip
def test_any_config_is_checked_or_a_mistake(changes: dict[str, Any], removed: Sequence[str]) -> None:
    """What passes can be written, read back and fingerprinted."""
    config = experiment("digits").copy_and_resolve_references()
    with config.ignore_type():
        for key, value in changes.items():
            *sections, last = key.split(".")
            section = config
            for name in sections:
                section = section[name]
            if isinstance(section, ConfigDict):
                section[last] = value
    for key in removed:
        del config[key]
    try:
        checked = check(config)
    except UserError:
        return
    assert isinstance(checked, config_lib.Config)
    assert differences(json.loads(json.dumps(to_dict(checked))), to_dict(checked)) == []
    assert len(fingerprint(checked)) == 64


def test_the_page_of_keys_is_that_of_their_declarations() -> None:
    """docs/config.md, by `python -m nin_jax.config > docs/config.md`: every key that the experiments have."""
    text = (ROOT / "docs/config.md").read_text()
    assert text == schema.page(config_lib.Config)
    for key in LEAVES:
        assert f"| `{key.split('.')[0] if key.startswith('model') else key}` |" in text


def test_a_checked_config_holds_nothing_that_is_still_to_be_read() -> None:
    """Calls, rules and sections are objects; nothing in it can be changed."""
    config = check(experiment("cifar10"))
    assert [(op.name, op.arguments) for op in config.preprocess] == [("gcn", {"scale": 55}), ("zca", {"eps": 0.1})]
    assert config.task.entry is registry.find("tasks", "classify")
    rules = config.optimizer.learning_rate_factors
    assert [(rule.pattern.pattern, rule.number) for rule in rules] == [
        ("cccp6/kernel", 0.1),
        ("cccp6/bias", 0.2),
        ("bias", 2.0),
    ]
    stages = check(experiment("imagenet", "deeper")).model.arguments["layers"]
    assert [str(stage) for stage in stages] == list(experiment("imagenet", "deeper").model.layers)
    assert (stages[0].size, stages[0].stride) == (11, 4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.epochs = 3  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(AttributeError):
        config.optimizer.momentun  # pyright: ignore[reportAttributeAccessIssue]  # noqa: B018
