"""Entries by name, the contracts they keep, and the calls by which a config names them.

The file's name is the key: `models/nin.py` is the model "nin"; to add one, add a file. A module outside the zoo is
named as in an import statement: `my_model`, `my_package.my_model`.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import math
import os
import pkgutil
import sys
import types
import typing
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

from nin_jax.errors import UserError, nearest, one_line

if TYPE_CHECKING:
    import flax.linen as nn
    import jax
    import numpy as np

E = TypeVar("E", covariant=True)


class Model(Protocol):
    """A module of models/."""

    @property
    def Model(self) -> Callable[..., nn.Module]:
        """`Model(num_classes, *, dtype, ...)(image, train=..., example=...) -> (logits, maps)`, see `nin_jax.models`."""
        ...


class Dataset(Protocol):
    """A module of data/datasets/.

    Its facts (`data.splits.Info`) are `INFO`, or, where they depend on the folder or on arguments, what
    `info(data_dir, **arguments)` returns; see `data.splits.facts`. Where a network does not see the centre of a picture, the
    module also has `image(pixels, **arguments)`: the image that is made of a picture uint8 `[H, W, C]`.
    """

    def load(self, split: str, data_dir: str | None, **arguments: Any) -> Any:
        """The images and labels of a split (`data.splits.Split`), or `data.encoded.Pictures` if it is streamed.

        Keyword-only arguments are what a config may set. `bad_records="skip"` asks to give records that cannot be read
        the label `data.splits.UNREADABLE`; by default the first one raises `UserError`.
        """
        ...


class FittedOp(Protocol):
    """A module of data/preprocess/ for `preprocess`. Images are float32 `[N, H, W, C]`.

    `ANY_SIZE = True` says that images of another size than those it was fitted on are preprocessed in the same way.
    """

    @property
    def PER_IMAGE(self) -> bool:
        """Whether nothing is fitted: `apply` is a function of each image alone."""
        ...

    def fit(self, images: np.ndarray, **arguments: Any) -> dict[str, Any]:
        """What is fitted on the training images, as named arrays."""
        ...

    def apply(self, stats: dict[str, Any], images: jax.Array, **arguments: Any) -> jax.Array:
        """Preprocessed images."""
        ...


class RandomOp(Protocol):
    """A module of data/preprocess/ for `augment`, in training only."""

    @property
    def RANDOM(self) -> bool:
        """True."""
        ...

    def apply(self, keys: jax.Array, images: jax.Array, **arguments: Any) -> jax.Array:
        """Images `[B, H, W, C]`, each changed at random with its own key of `keys [B]`."""
        ...


class Task(Protocol):
    """A module of training/tasks/. Logits are float32 `[B, K]`.

    `MULTILABEL = True` says that labels are int32 `[B, K]`. A task may also have `of_split(logits [N, K], labels)`: metrics of a
    whole evaluation, from 0 to 1, which are no means over its examples; they take the place of those of the same name.
    """

    def objective(self, logits: jax.Array, labels: jax.Array, **arguments: Any) -> jax.Array:
        """What training minimises, float32 `[B]`."""
        ...

    def per_example(self, logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
        """The metrics of each example, "loss" and "error" among them, float32 `[B]` each."""
        ...

    def combine(self, logits: jax.Array) -> jax.Array:
        """Combines the logits `[B, V, K]` of several views or networks into `[B, K]`."""
        ...


class Kind(NamedTuple):
    """What the entries of a folder are called, where they are, and the contract of each."""

    noun: str
    package: str
    contract: type
    called: str  # the function or class whose arguments a config sets


KINDS = {
    "models": Kind("model", "nin_jax.models", Model, "Model"),
    "datasets": Kind("dataset", "nin_jax.data.datasets", Dataset, "load"),
    "preprocess": Kind("preprocess op", "nin_jax.data.preprocess", FittedOp, "apply"),
    "augment": Kind("preprocess op", "nin_jax.data.preprocess", RandomOp, "apply"),
    "tasks": Kind("task", "nin_jax.training.tasks", Task, "objective"),
}


def names(kind: str) -> list[str]:
    """Names of the entries of a kind ("models", "datasets", "preprocess", "augment", "tasks"), sorted."""
    package = importlib.import_module(KINDS[kind].package)
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))


def outside(kind: str, name: str) -> bool:
    """Whether a name may be that of a module outside the zoo, which `find` imports if it is there."""
    return name not in names(kind) and all(part.isidentifier() for part in name.split("."))


def _is_there(name: str) -> bool:
    """Whether a module can be imported, as far as that is seen without importing its package; none of Python's own."""
    if "." in name or name in sys.stdlib_module_names:
        return "." in name
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # of __main__
        return False
    return spec is not None and spec.origin is not None  # a folder without __init__.py has none


def search_working_directory() -> None:
    """Lets names of modules outside the zoo mean files in the working directory, which is searched last: they hide nothing."""
    if not {"", os.getcwd()} & {*sys.path}:
        sys.path.append(os.getcwd())


def find(kind: str, name: str) -> Any:
    """The module of an entry, in the zoo or outside it, checked against the contract of its kind.

    Raises `UserError` with the nearest name, or with what the module lacks.
    """
    noun, package, contract, _ = KINDS[kind]
    if name in names(kind):
        module = importlib.import_module(f"{package}.{name}")
    elif not outside(kind, name) or not _is_there(name):
        own = f"; and there is no {name}.py of your own here" if name.isidentifier() else ""
        raise UserError(f"unknown {noun} {name!r}: {nearest(name, names(kind))}{own}")
    else:
        try:
            module = importlib.import_module(name)
        except (Exception, SystemExit) as error:  # it is the user's code, and may raise anything
            raise UserError(f"{noun} {name!r}: {type(error).__name__}: {one_line(error)}") from error
    if package == KINDS["augment"].package and (kind == "augment") != getattr(module, "RANDOM", False):
        other = "preprocess" if kind == "augment" else "augment"
        raise UserError(f"{noun} {name!r} belongs under {other!r}, not {kind!r}")
    lacking = [member for member in vars(contract) if not member.startswith("_") and not hasattr(module, member)]
    if kind == "datasets" and not (hasattr(module, "INFO") or hasattr(module, "info")):
        lacking.append("INFO")
    if lacking:
        raise UserError(f"{noun} {name!r}: the module has no {', no '.join(lacking)}")
    return module


@dataclasses.dataclass(frozen=True)
class Call(Generic[E]):
    """An entry with its arguments, as a config names it.

    Attributes:
      source: what the config says: "gcn(scale=55)", or for a model the section with its name and arguments.
      name: of the entry.
      arguments: those that the config sets, checked.
      entry: the module.
    """

    source: Any
    name: str
    arguments: Mapping[str, Any]
    entry: E

    def __str__(self) -> str:
        return str(self.source)


def call(kind: str, text: str) -> Call[Any]:
    """The entry and the arguments that "gcn(scale=55)" names. Raises `UserError`."""
    name, arguments = parse_call(text)
    entry = find(kind, name)
    return Call(
        text, name, check_arguments(f"{KINDS[kind].noun} {name}", legal_arguments(kind, entry), arguments), entry
    )


def calls(kind: str, texts: Iterable[str]) -> tuple[Call[Any], ...]:
    """Each of `texts` as a `call`."""
    return tuple(call(kind, text) for text in texts)


def zoo_call(kind: str, text: str) -> tuple[str, dict[str, Any]]:
    """`parse_call` for an entry that another one names in its arguments: only the zoo's own are allowed.

    `config.modules` does not look into arguments, so loading a stranger's config would import such a module unasked.
    """
    name, arguments = parse_call(text)
    if name not in names(kind):
        raise UserError(f"unknown {KINDS[kind].noun} {name!r}: {nearest(name, names(kind))}; here only the zoo's own")
    return name, arguments


def create(name: str, num_classes: int, **arguments: Any) -> nn.Module:
    """The module of a model: `Model(num_classes, **arguments)`, see its file for the arguments; nothing is computed.

    Raises `UserError` for an unknown name, an unknown argument, or a value that an argument does not allow.
    """
    entry = find("models", name)
    others = {key: value for key, value in arguments.items() if key in NOT_OF_A_CONFIG}
    chosen = {key: value for key, value in arguments.items() if key not in others}
    chosen = check_arguments(f"model {name}", legal_arguments("models", entry), chosen)
    return entry.Model(num_classes, **chosen, **others)


# What the data set, the precision and the devices decide.
NOT_OF_A_CONFIG = {"num_classes", "dtype", "axis_name", "parent", "name", "bad_records"}


def legal_arguments(kind: str, entry: ModuleType) -> dict[str, Any]:
    """The arguments of an entry that a config may set, with the annotation of each: a model's fields, else the keyword-only ones."""
    called = getattr(entry, KINDS[kind].called)
    try:
        if kind == "models":
            hints = typing.get_type_hints(called)
            legal = {name: hints.get(name, Any) for name in inspect.signature(called).parameters}
        else:
            parameters = inspect.signature(called, eval_str=True).parameters.values()
            legal = {p.name: p.annotation for p in parameters if p.kind == p.KEYWORD_ONLY}
    except NameError as error:  # such as of an import for type checkers alone
        raise UserError(f"{KINDS[kind].noun} {entry.__name__!r}: an annotation cannot be evaluated: {error}") from error
    return {name: legal[name] for name in sorted(legal) if name not in NOT_OF_A_CONFIG}


def parse_call(text: str) -> tuple[str, dict[str, Any]]:
    """Parses "gcn(scale=55)" into ("gcn", {"scale": 55}). Literals only; nothing is executed.

    Raises `UserError` if the text is anything but a name or a call with literal keyword arguments.
    """
    wanted = f"{text!r} is not a call such as 'gcn(scale=55)' with literal keyword arguments"
    try:
        with warnings.catch_warnings(action="ignore"):  # of what a text means as Python, which it is not
            node = ast.parse(text.strip(), mode="eval").body
        call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
        keywords = {k.arg for k in call.keywords}
        if call.args or None in keywords or len(keywords) < len(call.keywords):
            raise ValueError
        name = ast.unparse(call.func)
        if not all(part.isidentifier() for part in name.split(".")):
            raise ValueError
        return name, {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise UserError(wanted) from error


def check_arguments(what: str, legal: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Checks and parses arguments. Raises `UserError` for an unknown one or a wrong type.

    Args:
      what: the entry or call, for the message.
      legal: the annotation of each argument. Checked are numbers, strings, `Literal`, unions and sequences of those.
      arguments: the values given.
    """
    for name, value in arguments.items():
        if name not in legal:
            raise UserError(f"{what} has no argument {name!r}: {nearest(name, legal)}")
        wrong = _wrong(value, legal[name])
        if wrong:
            raise UserError(f"{what}: {name}={value!r}: {wrong}")
    return {name: _parsed(value, legal[name]) for name, value in arguments.items()}


def _parsed(value: Any, hint: Any) -> Any:
    """A value of the annotated type; a string is read by `parse` of the annotation's class where it has one."""
    options = typing.get_args(hint)
    if typing.get_origin(hint) is Sequence:
        return tuple(_parsed(element, options[0]) for element in value)
    parse = next((option.parse for option in (hint, *options) if hasattr(option, "parse")), None)
    return parse(value) if parse and isinstance(value, str) else value


def _wrong(value: Any, hint: Any) -> str | None:
    """Why a value is not of the annotated type; None if it is, or if the annotation is none of those checked."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return None if value in options else nearest(str(value), map(str, options))
    if origin in (typing.Union, types.UnionType):
        reasons = [_wrong(value, option) for option in options]
        return None if None in reasons else ", or ".join(map(str, reasons))
    if origin is Sequence:
        if not isinstance(value, (list, tuple)):
            return f"{value!r} must be a tuple"
        return next((wrong for element in value if (wrong := _wrong(element, options[0]))), None)
    if hint is types.NoneType:
        return None if value is None else "must be None"
    if hint is float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        return None if number else f"{value!r} must be a finite number"
    if hint in (int, str, bool):
        fits = isinstance(value, hint) and not (hint is int and isinstance(value, bool))
        return None if fits else f"{value!r} must be of type {hint.__name__}"
    return None


def literal_type(hint: Any) -> type:
    """The type of the literals that an annotation allows; `object` where there are several.

    >>> literal_type(Sequence[int]), literal_type(typing.Literal["max", "avg"]), literal_type(float | str)
    (<class 'tuple'>, <class 'str'>, <class 'object'>)
    """
    origin = typing.get_origin(hint)
    types_ = {type(option) for option in typing.get_args(hint)} if origin is typing.Literal else {hint}
    if origin is Sequence:
        return tuple
    return types_.pop() if types_ < {bool, int, float, str} and len(types_) == 1 else object
