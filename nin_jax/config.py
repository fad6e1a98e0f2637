"""Every legal key of an experiment, with its default and unit; the strict check; the fingerprint of a run.

An experiment (`experiments/NAME.py`) starts from `default()`, sets what differs, and is then frozen by
`check`. Nothing else in the package knows a default of its own.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import re
import runpy
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict
from ml_collections.config_dict import placeholder

from nin_jax import registry
from nin_jax.data import views
from nin_jax.errors import UserError, nearest

Config = Any  # a FrozenConfigDict that `check` returned; its stubs give every value the union of all types

CHOICES = {
    "precision": ("float32", "bfloat16"),
    "mapper": ("pmap", "shard_map"),
    "bad_records": ("stop", "skip"),
    "schedule.decay": ("none", "linear", "exponential", "cosine"),
    "eval.views": views.NAMES,
}

AT_LEAST_1 = (
    "batch_size",
    "accumulate",
    "epochs",
    "eval_every_epochs",
    "checkpoint_every_epochs",
    "keep",
    "schedule.plateau_drops",
)
AT_LEAST_0 = (
    "eval_batch_size",
    "rollbacks",
    "watchdog_seconds",
    *(f"optimizer.{k}" for k in ("learning_rate", "momentum", "momentum_final", "momentum_epochs")),
    *(f"optimizer.{k}" for k in ("weight_decay", "clip_norm")),
    *(f"schedule.{k}" for k in ("factor", "warmup_epochs", "final_factor", "final_epochs", "plateau_epochs")),
)

# What may change between two starts of the same run: where things lie, how the work is shared out, what faults lead to.
NOT_THE_RUN = (
    *("data_dir", "mapper", "keep", "checkpoint_every_epochs", "accumulate", "eval_batch_size", "workers"),
    *("bad_records", "rollbacks", "rollback_factor", "watchdog_seconds"),
)


def default() -> Config:
    """All keys but the model's own arguments, which each experiment lists under `model`."""
    c = ConfigDict()
    c.seed = 0  # of initial weights, batches, augmentation and dropout
    c.dataset = placeholder(str)  # entry of datasets/, with arguments where it has some: "folder(size=32)"
    c.data_dir = placeholder(str)  # None: TFDS_DATA_DIR, else ~/tensorflow_datasets
    c.train_split = "train"  # TFDS split syntax: "train[:40000]", "train[80%:]"
    c.eval_split = "test"
    c.preprocess = ()  # calls of preprocess/, fitted on the training split: ("gcn(scale=55)", "zca(eps=0.1)")
    c.augment = ()  # random calls of preprocess/, training only: ("crop(pad=4)", "flip()")
    c.model = ConfigDict({"name": placeholder(str)})  # entry of models/ and its arguments
    c.task = "classify"  # entry of tasks/, with arguments where it has some: "classify(smoothing=0.1)"
    c.init_from = placeholder(str)  # a run directory whose weights to start from, as far as they fit; None: random ones
    c.batch_size = 128  # images an update, over all devices
    c.accumulate = 1  # parts that a batch is computed in, one after the other: the same update from less memory
    c.epochs = 1  # passes over the training split
    c.precision = "float32"  # what is computed in: "float32", "bfloat16"; parameters are float32
    c.mapper = "pmap"  # what maps a step over the devices: "pmap", "shard_map"
    c.optimizer = ConfigDict(
        {
            "learning_rate": 0.1,
            "learning_rate_factors": (),  # "PATTERN=FACTOR" by parameter path, first match: ("cccp6/kernel=0.1", "bias=2")
            "momentum": 0.9,
            "momentum_final": 0.9,  # what momentum has become, linearly, after momentum_epochs; then it stays
            "momentum_epochs": 0.0,  # 0: momentum is constant, and momentum_final is not looked at
            "weight_decay": 1e-4,  # L2: the gradient of weight_decay / 2 * |w|^2, on kernels and not on biases
            "clip_norm": 0.0,  # longest gradient of the whole network, L2; 0: no limit
            "average": 0.0,  # the part of an exponential mean of the weights that an update leaves; it is evaluated; 0: no mean
            "max_norms": (),  # "PATTERN=NORM" by path, first match: longest filter, L2 over all axes but the last
        }
    )
    c.schedule = ConfigDict(
        {
            "boundaries_epochs": (),  # after so many epochs the rate is multiplied by `factor`
            "factor": 0.1,
            "warmup_epochs": 0.0,  # linear rise of the rate from 0
            "decay": "none",  # shape of a smooth fall besides: "none", "linear", "exponential", "cosine"
            "final_factor": 0.01,  # what the rate is multiplied by where the fall ends; then it stays
            "final_epochs": 0.0,  # epoch at which it ends; 0: the last
            "plateau_epochs": 0,  # epochs without a new lowest training error, then the rate times `factor`; 0: off
            "plateau_drops": 2,  # how often at most; the paper's rule, section 4.1: down to 1 % of the initial rate
        }
    )
    c.eval = ConfigDict({"views": "center"})  # protocol of pipeline/views.py: "center", "10-crop", "3-view", "dense"
    c.eval_batch_size = 0  # inputs at a time in an evaluation, at most; 0: batch_size
    c.eval_every_epochs = 1
    c.checkpoint_every_epochs = 1
    c.workers = -1  # processes that decode pictures which do not fit in memory; 0: threads alone; -1: by the cores
    c.keep = 2  # newest checkpoints kept, besides the best
    c.bad_records = "stop"  # at a record that cannot be used: "stop"; "skip" leaves it out and counts it in the summary
    c.rollbacks = 0  # how often a run that diverges goes back to its newest good checkpoint, with a lower rate
    c.rollback_factor = 0.5  # what each of them multiplies the learning rate by
    c.watchdog_seconds = (
        1800.0  # a run in which nothing is finished for so long is ended, with stacks, code 75; 0: never
    )
    return c


def experiments() -> dict[str, Path]:
    """The experiments of the project by name, such as "cifar10" and "ablations/dropout", those of a folder last.

    They lie beside the package in a checkout, inside it when installed.
    """
    package = Path(__file__).parent
    found: dict[str, Path] = {}
    for root in (package / "experiments", package.parent / "experiments"):
        found |= {f.relative_to(root).with_suffix("").as_posix(): f for f in root.rglob("*.py")}
    return {name: found[name] for name in sorted(found, key=lambda name: ("/" in name, name))}


def experiment(name: str, arg: str | None = None) -> Config:
    """The config of another experiment of the project, to be changed: `experiment("cifar10", "release")`."""
    files = experiments()
    if name not in files:
        raise UserError(f"unknown experiment {name!r}: {nearest(name, files)}")
    return runpy.run_path(str(files[name]), run_name="experiment")["get_config"](arg)


def words(arg: str | None, arguments: Sequence[str]) -> list[str]:
    """An experiment's argument taken apart, "release,tune" into ["release", "tune"]; of `arguments`, or ValueError."""
    if arg is None:
        return []
    if arg not in arguments:
        raise ValueError(f"unknown argument {arg!r}: {nearest(arg, arguments)}")
    return arg.split(",")


def check(config: Config) -> Config:
    """Verifies every key, type, name and range; returns the config frozen. Raises `UserError` in one line."""
    _check_keys(config, default(), "")
    for key, choices in CHOICES.items():
        value = _value(config, key)
        if value not in choices:
            raise UserError(f"{key}={value!r}: {nearest(str(value), choices)}")
    for key in AT_LEAST_1:
        if _value(config, key) < 1:
            raise UserError(f"{key}={_value(config, key)}: must be 1 or more")
    if config.workers < -1:
        raise UserError(f"workers={config.workers}: must be 0 or more, or -1 for as many as the cores want")
    if not 0 <= config.seed < 2**32:
        raise UserError(f"seed={config.seed}: must be from 0 to 2^32 - 1")
    for key in AT_LEAST_0:
        if not (math.isfinite(_value(config, key)) and _value(config, key) >= 0):
            raise UserError(f"{key}={_value(config, key)}: must be a finite number, 0 or more")
    s = config.schedule
    if s.decay == "exponential" and not s.final_factor:
        raise UserError("schedule.final_factor=0: an exponential decay never gets there; must be above 0")
    if s.plateau_epochs and not 0 < s.factor < 1:
        raise UserError(f"schedule.factor={s.factor}: with schedule.plateau_epochs it must be between 0 and 1")
    for epoch in config.schedule.boundaries_epochs:
        if isinstance(epoch, bool) or not isinstance(epoch, (int, float)) or not 0 < epoch < math.inf:
            raise UserError(f"schedule.boundaries_epochs={config.schedule.boundaries_epochs}: epochs, each above 0")
    if not 0 < config.rollback_factor <= 1:
        raise UserError(f"rollback_factor={config.rollback_factor}: must be above 0, and at most 1")
    learning_rate_factors(config)
    max_norms(config)
    registry.find("tasks", registry.parse_call(config.task)[0])
    if not 0 <= config.optimizer.average < 1:
        raise UserError(f"optimizer.average={config.optimizer.average}: must be 0 or more, and less than 1")
    for op in (*config.preprocess, *config.augment):
        if not isinstance(op, str):
            raise UserError(f"preprocess and augment hold strings such as 'gcn(scale=55)', not {op!r}")
    try:
        json.dumps(config.to_dict(), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"the config cannot be written to config.json: {error}") from error
    return FrozenConfigDict(config)


def learning_rate_factors(config: Config) -> list[tuple[re.Pattern[str], float]]:
    """`optimizer.learning_rate_factors` taken apart: (pattern of a parameter's path, factor)."""
    return _rules(config, "learning_rate_factors", "factor", -math.inf)


def max_norms(config: Config) -> list[tuple[re.Pattern[str], float]]:
    """`optimizer.max_norms` taken apart: (pattern of a parameter's path, longest norm of a filter)."""
    return _rules(config, "max_norms", "norm", 0.0)


def _rules(config: Config, key: str, number: str, above: float) -> list[tuple[re.Pattern[str], float]]:
    rules = []
    for rule in config.optimizer[key]:
        try:
            pattern, value = rule.rsplit("=", 1)
            rules.append((re.compile(pattern), float(value)))
        except (AttributeError, TypeError, ValueError, OverflowError, RecursionError, re.error) as error:
            raise UserError(f"optimizer.{key}: {rule!r} is not 'PATTERN={number.upper()}'") from error
        if not above < rules[-1][1] < math.inf:
            least = "" if above == -math.inf else f" and above {above:g}"
            raise UserError(f"optimizer.{key}: {rule!r}: the {number} must be finite{least}")
    return rules


def _value(config: Config, key: str) -> Any:
    """The value of "momentum" or "optimizer.momentum"."""
    section, _, last = key.rpartition(".")
    return (config[section] if section else config)[last]


def _check_keys(config: ConfigDict, legal: ConfigDict, where: str) -> None:
    for key in config:
        if key not in legal:
            raise UserError(f"unknown config key {where + str(key)!r}: {nearest(str(key), legal.keys())}")
    for key in legal:
        if key not in config:
            raise UserError(f"config key {where + key!r} is missing")
        value, example = config[key], legal[key]
        if where + key == "model":
            _check_model(value)
        elif isinstance(example, ConfigDict):
            if not isinstance(value, ConfigDict):
                raise UserError(f"{where + key}={value!r}: must be a section with {', '.join(example.keys())}")
            _check_keys(value, example, where + key + ".")
        elif key in ("data_dir", "init_from") and value is None:
            pass
        else:
            kind = legal.get_type(key)
            ok = isinstance(value, kind) or (kind is float and isinstance(value, int))
            if not ok or (isinstance(value, bool) and kind is not bool):
                raise UserError(f"{where + key}={value!r}: must be of type {kind.__name__}")


def _check_model(model: Any) -> None:
    name: Any = model.get("name") if isinstance(model, ConfigDict) else None
    if not isinstance(name, str):
        raise UserError("model.name must name a model")
    legal = model_arguments(name)
    registry.check_arguments(f"model {name}", legal, {k: v for k, v in model.items() if k != "name"})


def model_arguments(name: str) -> dict[str, Any]:
    """The arguments of a model that a config may set: all but what the data set and the precision decide.

    Returns:
      the annotation of each.
    """
    model = registry.find("models", name).Model
    hints = typing.get_type_hints(model)
    legal = inspect.signature(model).parameters.keys() - {"num_classes", "dtype", "axis_name", "parent", "name"}
    return {argument: hints.get(argument, Any) for argument in sorted(legal)}


def to_dict(config: Config) -> dict[str, Any]:
    """The config as plain dicts, lists, strings and numbers, as it stands in config.json."""
    return json.loads(json.dumps(config.to_dict(), sort_keys=True))


def from_dict(plain: Mapping[str, Any]) -> Config:
    """The config of a `to_dict`, unchecked: lists are tuples again, and keys that an older version had not are default."""

    def back(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: back(v) for k, v in value.items()}
        return tuple(map(back, value)) if isinstance(value, list) else value

    config = default()
    with config.unlocked(), config.ignore_type():
        for key, value in back(plain).items():
            if isinstance(value, dict):
                section = config.get(key)
                value = ConfigDict({**(section if isinstance(section, ConfigDict) else {}), **value})
            config[key] = value
    return config


def read(path: Path) -> Config:
    """The config in the config.json of a run, unchecked. Raises `UserError` where there is none in the file."""
    try:
        plain = json.loads(path.read_text())
        if not isinstance(plain, dict):
            raise ValueError("it holds no object")
        return from_dict(plain)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read: {' '.join(str(error).split())[:300]}; choose another --workdir"
        ) from error


def modules(config: Config) -> list[str]:
    """The modules outside the zoo that a config names, by dotted path: to check it is to import them, and so to run them."""
    plain = to_dict(config)
    model = plain.get("model")
    names = [model.get("name") if isinstance(model, dict) else None, plain.get("dataset"), plain.get("task")]
    for key in ("preprocess", "augment"):
        names += plain[key] if isinstance(plain.get(key), list) else []
    called = [str(name).split("(")[0].strip() for name in names]
    return [name for name in called if "." in name]


def fingerprint(config: Config) -> str:
    """SHA-256 of what makes the run: every key but `NOT_THE_RUN`. Same fingerprint: one can go on as the other."""
    plain = {k: v for k, v in to_dict(config).items() if k not in NOT_THE_RUN}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def differences(a: dict[str, Any], b: dict[str, Any], where: str = "") -> list[str]:
    """The keys in which two `to_dict` configs differ, as "optimizer.learning_rate: 0.1, now 0.2"."""
    lines = []
    for key in sorted(a.keys() | b.keys()):
        old, new = a.get(key), b.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += differences(old, new, f"{where}{key}.")
        elif old != new:
            lines.append(f"{where}{key}: {old!r}, now {new!r}")
    return lines
