"""The config of a run: every key declared once, with its default, its text and its check.

An experiment (`experiments/NAME.py`) starts from `default()`, an `ml_collections.ConfigDict` of plain values, and sets what
differs; flags change more. `check` turns that into a `Config`: typed, frozen and parsed, which is all that the rest of the
package sees. `python -m nin_jax.config > docs/config.md` writes the page of all keys.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import runpy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from nin_jax import registry, schema, storage
from nin_jax.data import views
from nin_jax.errors import UserError, nearest, one_line
from nin_jax.registry import Call
from nin_jax.schema import REQUIRED, Rule, at_least, calls, epochs, key, must, one_of, rules


def model(section: Any) -> Call[registry.Model]:
    """The model of a section with its name and its arguments."""
    name: Any = section.get("name") if isinstance(section, ConfigDict) else None
    if not isinstance(name, str):
        raise UserError("model.name must name a model")
    entry, arguments = registry.find("models", name), {k: v for k, v in section.items() if k != "name"}
    legal = registry.legal_arguments("models", entry)
    return Call(section.to_dict(), name, registry.check_arguments(f"model {name}", legal, arguments), entry)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Stochastic gradient descent; see `training.optim` for the formula."""

    learning_rate: float = key(0.1, "learning rate after the warm-up, before any decay", at_least(0))
    learning_rate_factors: tuple[Rule, ...] = key(
        (),
        'factors of the learning rate, "PATTERN=FACTOR", by regular expressions that are searched in the parameter\'s path; '
        'the first match counts: ("cccp6/kernel=0.1", "bias=2")',
        rules("factor", -math.inf),
    )
    momentum: float = key(0.9, "momentum", at_least(0))
    momentum_final: float = key(0.9, "momentum from `momentum_epochs` on, reached linearly", at_least(0))
    momentum_epochs: float = key(0.0, "length of the change to `momentum_final`, in epochs; 0: none", at_least(0))
    weight_decay: float = key(
        1e-4, "weight decay: L2, the gradient of weight_decay / 2 * w^2, on kernels and not on biases", at_least(0)
    )
    clip_norm: float = key(
        0.0, "gradient clipping: the largest L2 norm of the gradient of the whole network; 0: none", at_least(0)
    )
    average: float = key(
        0.0,
        "EMA decay: the exponential moving average of the weights is what is evaluated; 0: no average",
        must("0 or more, and less than 1", lambda x: 0 <= x < 1),
    )
    max_norms: tuple[Rule, ...] = key(
        (),
        'max-norm constraints, "PATTERN=NORM", by path as above: the largest L2 norm of a filter, over all axes but the last',
        rules("norm", 0.0),
    )


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The learning rate over time; see `training.optim.schedule` for the formula."""

    boundaries_epochs: tuple[float, ...] = key(
        (), "epochs after which the learning rate is multiplied by `factor`", epochs
    )
    factor: float = key(0.1, "factor of the learning rate at each boundary or plateau", at_least(0))
    warmup_epochs: float = key(0.0, "length of the linear warm-up from 0, in epochs", at_least(0))
    decay: str = key(
        "none",
        'shape of a smooth decay: "none", "linear", "exponential" or "cosine"',
        one_of("none", "linear", "exponential", "cosine"),
    )
    final_factor: float = key(0.01, "factor of the learning rate at the end of the smooth decay", at_least(0))
    final_epochs: float = key(0.0, "epoch at which the smooth decay ends; 0: the last", at_least(0))
    plateau_epochs: int = key(
        0,
        "epochs without a new lowest training error after which the learning rate drops by `factor`; 0: off",
        at_least(0),
    )
    plateau_drops: int = key(
        2, "largest number of such drops; the paper's rule (section 4.1): down to 1 % of the initial rate", at_least(1)
    )

    def __post_init__(self) -> None:
        if self.decay == "exponential" and not self.final_factor:
            raise UserError("schedule.final_factor=0: an exponential decay never gets there; must be above 0")
        if self.plateau_epochs and not 0 < self.factor < 1:
            raise UserError(f"schedule.factor={self.factor}: with schedule.plateau_epochs it must be between 0 and 1")


@dataclasses.dataclass(frozen=True)
class Eval:
    """Evaluation."""

    views: str = key(
        "center",
        'views of an image that are evaluated: "center", "mirror", "10-crop", "3-view" or "dense"; see `data.views`',
        one_of(*views.NAMES),
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """A checked config. Calls, rules and the model are parsed."""

    seed: int = key(
        0,
        "seed of initial weights, batches, augmentation and dropout",
        must("from 0 to 2^32 - 1", lambda seed: 0 <= seed < 2**32),
    )
    dataset: Call[registry.Dataset] = key(
        REQUIRED,
        'entry of data/datasets/, with arguments if it has some: "folder(size=32)"',
        functools.partial(registry.call, "datasets"),
    )
    data_dir: str | None = key(
        None,
        "where the data set is prepared; None: TFDS_DATA_DIR, else ~/tensorflow_datasets",
        storage.local_path,
        part_of_run=False,
    )
    train_split: str = key("train", 'training split, in TFDS split syntax: "train[:40000]", "train[80%:]"')
    eval_split: str = key("test", "evaluation split")
    preprocess: tuple[Call[registry.FittedOp], ...] = key(
        (),
        'calls of fitted ops of data/preprocess/, fitted on the training split: ("gcn(scale=55)", "zca(eps=0.1)")',
        calls("preprocess"),
    )
    augment: tuple[Call[registry.RandomOp], ...] = key(
        (), 'calls of random ops of data/preprocess/, in training only: ("crop(pad=4)", "flip()")', calls("augment")
    )
    model: Call[registry.Model] = key(
        {"name": REQUIRED},
        "model.name: entry of models/, another one than the experiment's with its own defaults; model.ARGUMENT: its arguments",
        model,
    )
    task: Call[registry.Task] = key(
        "classify",
        'entry of training/tasks/, with arguments if it has some: "classify(smoothing=0.1)"',
        functools.partial(registry.call, "tasks"),
    )
    init_from: str | None = key(
        None,
        "trained network (name or run directory) that training starts from, as far as its weights fit; None: random weights",
        storage.local_path,
    )
    batch_size: int = key(128, "images per update, over all devices", at_least(1))
    accumulate: int = key(
        1,
        "gradient accumulation: microbatches that a batch is computed in; the same update from less memory",
        at_least(1),
        part_of_run=False,
    )
    epochs: int = key(1, "passes over the training split", at_least(1))
    precision: str = key(
        "float32",
        'what the network computes in: "float32"; "tensorfloat32": float32 with faster, rougher products; or "bfloat16"; '
        "parameters are float32",
        one_of("float32", "tensorfloat32", "bfloat16"),
    )
    mapper: str = key(
        "pmap",
        'what maps a step over the devices: "pmap" or "shard_map"',
        one_of("pmap", "shard_map"),
        part_of_run=False,
    )
    optimizer: Optimizer = key(Optimizer)
    schedule: Schedule = key(Schedule)
    eval: Eval = key(Eval)
    eval_batch_size: int = key(
        0,
        "largest number of images per evaluation batch, over all devices; 0: batch_size",
        at_least(0),
        part_of_run=False,
    )
    eval_every_epochs: int = key(1, "epochs between evaluations", at_least(1))
    checkpoint_every_epochs: int = key(1, "epochs between checkpoints", at_least(1), part_of_run=False)
    workers: int = key(
        -1,
        "processes that decode images of a streamed data set; 0: threads only; -1: chosen by the number of cores",
        at_least(-1),
        part_of_run=False,
    )
    keep: int = key(2, "newest checkpoints kept, besides the best", at_least(1), part_of_run=False)
    bad_records: str = key(
        "stop",
        'at a record that cannot be used: "stop", or "skip": leave it out and count it in the summary',
        one_of("stop", "skip"),
        part_of_run=False,
    )
    rollbacks: int = key(
        0,
        "how many times a diverged run may go back to its newest good checkpoint, with a lower learning rate",
        at_least(0),
        part_of_run=False,
    )
    rollback_factor: float = key(
        0.5,
        "what each rollback multiplies the learning rate by",
        must("above 0, and at most 1", lambda x: 0 < x <= 1),
        part_of_run=False,
    )
    watchdog_seconds: float = key(
        1800.0,
        "seconds without progress after which a run prints its stacks and exits with code 75; 0: never",
        at_least(0),
        part_of_run=False,
    )


# What may change between two starts of the same run: where things are, how work is shared, what happens at a fault.
NOT_THE_RUN = tuple(name for name, declared in schema.leaves(Config) if not declared.part_of_run)


def default() -> ConfigDict:
    """All keys but the model's own arguments, which each experiment lists under `model`."""
    return schema.default(Config)


def check(config: ConfigDict) -> Config:
    """Verifies every key, type, name and range, and parses what is text. Raises `UserError` in one line."""
    checked = schema.check(Config, config)
    try:
        json.dumps(checked, default=schema.plain, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"the config cannot be written to config.json: {error}") from error
    return checked


def to_dict(config: Config | ConfigDict) -> dict[str, Any]:
    """The config as plain dicts, lists, strings and numbers, as it stands in config.json."""
    plain = config.to_dict() if isinstance(config, ConfigDict) else config
    return json.loads(json.dumps(plain, default=schema.plain, sort_keys=True))


def from_dict(plain: Mapping[str, Any]) -> ConfigDict:
    """The config of a `to_dict`, unchecked.

    Lists become tuples again; keys that an older version lacked get their defaults.
    """

    def back(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: back(v) for k, v in value.items()}
        return tuple(map(back, value)) if isinstance(value, list) else value

    config = default()
    with config.unlocked(), config.ignore_type():
        for name, value in back(plain).items():
            section = config.get(name)
            config[name] = ConfigDict({**section, **value}) if isinstance(section, ConfigDict) else value
    return config


def read(path: Path) -> ConfigDict:
    """The config in the config.json of a run, unchecked. Raises `UserError` if the file does not hold one."""
    try:
        plain = json.loads(path.read_text())
        if not isinstance(plain, dict):
            raise ValueError("it holds no object")
        return from_dict(plain)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {one_line(error)[:300]}; choose another --workdir") from error


def modules(config: Config | ConfigDict) -> list[str]:
    """The modules outside the zoo that an unchecked config names. Checking the config would import, and so run, them."""
    plain = to_dict(config)
    section = plain.get("model")
    calls = [("datasets", plain.get("dataset")), ("tasks", plain.get("task"))]
    for kind in ("preprocess", "augment"):
        calls += [(kind, op) for op in plain[kind]] if isinstance(plain.get(kind), list) else []
    named = [("models", str(section.get("name")))] if isinstance(section, dict) else []
    for kind, text in calls:
        with contextlib.suppress(UserError):  # what is no call names nothing
            named.append((kind, registry.parse_call(str(text))[0]))
    return [name for kind, name in named if registry.outside(kind, name)]


def fingerprint(config: Config | ConfigDict) -> str:
    """SHA-256 of every key but those of `NOT_THE_RUN`. A checkpoint resumes only under the same fingerprint."""
    plain = {k: v for k, v in to_dict(config).items() if k not in NOT_THE_RUN}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def differences(a: dict[str, Any], b: dict[str, Any], where: str = "") -> list[str]:
    """The keys in which two `to_dict` configs differ, as "optimizer.learning_rate: 0.1, now 0.2"."""
    lines = []
    for name in sorted(a.keys() | b.keys()):
        old, new = a.get(name), b.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += differences(old, new, f"{where}{name}.")
        elif old != new:
            lines.append(f"{where}{name}: {old!r}, now {new!r}")
    return lines


def experiments(detection: bool = False) -> dict[str, Path]:
    """The experiments of the project by name, such as "cifar10" and "ablations/dropout"; those in a folder come last.

    They lie beside the package in a checkout, inside it when installed.

    Args:
      detection: those of `nin_jax.detection`, "detect_...", instead.
    """
    package = Path(__file__).parent
    found: dict[str, Path] = {}
    for root in (package / "experiments", package.parent / "experiments"):
        files = (f for f in root.rglob("*.py") if f.name.startswith("detect_") == detection)
        found |= {f.relative_to(root).with_suffix("").as_posix(): f for f in files}
    return {name: found[name] for name in sorted(found, key=lambda name: ("/" in name, name))}


def experiment(name: str, arg: str | None = None) -> ConfigDict:
    """The config of another experiment of the project, to be changed: `experiment("cifar10", "release")`."""
    files = experiments()
    if name not in files:
        raise UserError(f"unknown experiment {name!r}: {nearest(name, files)}")
    return runpy.run_path(str(files[name]), run_name="experiment")["get_config"](arg)


def words(arg: str | None, arguments: Sequence[str]) -> list[str]:
    """Splits an experiment's argument, "release,tune" into ["release", "tune"].

    Raises ValueError unless it is one of `arguments`.
    """
    if arg is None:
        return []
    if arg not in arguments:
        raise ValueError(f"unknown argument {arg!r}: {nearest(arg, arguments)}")
    return arg.split(",")


if __name__ == "__main__":
    print(schema.page(Config), end="")
