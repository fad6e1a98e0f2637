"""Sections of a config: frozen dataclasses whose fields are declared by `key`, with default, text and check.

Everything else is derived from the declarations: the `ConfigDict` of defaults that experiments change, the strict check that
makes typed sections of it, and the documentation.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from nin_jax import registry
from nin_jax.errors import UserError, nearest
from nin_jax.registry import Call

S = TypeVar("S")
REQUIRED: Any = object()  # the default of a key that has none


class Key(NamedTuple):
    """The declaration of a key.

    Attributes:
      default: a plain value, as an experiment sets it; or `REQUIRED`; or, for a section, its class.
      text: what it is, with its unit.
      parse: turns the plain value into what the section holds. Raises `ValueError` or `UserError`.
      part_of_run: whether a run with another value is another run.
    """

    default: Any
    text: str
    parse: Callable[[Any], Any]
    part_of_run: bool

    @property
    def kind(self) -> type:
        """Type of the plain value; a string where the default is None or `REQUIRED`."""
        return str if self.default is None or self.default is REQUIRED else type(self.default)

    @property
    def shown(self) -> str:
        """The default as text."""
        return "required" if self.default is REQUIRED or self.kind is dict else repr(self.default)


def key(
    default: Any, text: str = "", parse: Callable[[Any], Any] = lambda value: value, *, part_of_run: bool = True
) -> Any:
    """A field of a section, see `Key`."""
    return dataclasses.field(metadata={"key": Key(default, text, parse, part_of_run)})


def must(be: str, test: Callable[[Any], bool]) -> Callable[[Any], Any]:
    """A check: values that pass `test`; `be` says which those are."""

    def parse(value: Any) -> Any:
        if not test(value):
            raise ValueError(f"must be {be}")
        return value

    return parse


def at_least(least: int) -> Callable[[Any], Any]:
    """A check: finite numbers from `least` on."""
    return must(f"{least} or more, and finite", lambda value: least <= value < math.inf)


def one_of(*choices: str) -> Callable[[str], str]:
    """A check: one of these words."""

    def parse(value: str) -> str:
        if value not in choices:
            raise ValueError(nearest(value, choices))
        return value

    return parse


@dataclasses.dataclass(frozen=True)
class Rule:
    """ "PATTERN=NUMBER": the number of those parameters in whose path the pattern is found."""

    source: str
    pattern: re.Pattern[str]
    number: float


def rules(number: str, above: float) -> Callable[[tuple[Any, ...]], tuple[Rule, ...]]:
    """Rules whose number is finite and above `above`; `number` says what it is."""

    def one(source: Any) -> Rule:
        try:
            pattern, value = source.rsplit("=", 1)
            rule = Rule(source, re.compile(pattern), float(value))
        except (AttributeError, TypeError, ValueError, OverflowError, RecursionError, re.error) as error:
            raise ValueError(f"{source!r} is not 'PATTERN={number.upper()}'") from error
        if not above < rule.number < math.inf:
            least = "" if above == -math.inf else f" and above {above:g}"
            raise ValueError(f"{source!r}: the {number} must be finite{least}")
        return rule

    return lambda sources: tuple(map(one, sources))


def epochs(values: tuple[Any, ...]) -> tuple[float, ...]:
    """A check: epochs, each above 0."""
    for epoch in values:
        if isinstance(epoch, bool) or not isinstance(epoch, (int, float)) or not 0 < epoch < math.inf:
            raise ValueError("must be epochs, each above 0")
    return values


def calls(kind: str) -> Callable[[tuple[Any, ...]], tuple[Call[Any], ...]]:
    """A check: calls of entries, such as "gcn(scale=55)", which are looked up."""

    def parse(texts: tuple[Any, ...]) -> tuple[Call[Any], ...]:
        for text in texts:
            if not isinstance(text, str):
                raise ValueError(f"must be strings such as 'gcn(scale=55)', not {text!r}")
        return registry.calls(kind, texts)

    return parse


@functools.cache
def keys(section: type) -> dict[str, Key]:
    """The declarations of a section by name."""
    return {field.name: field.metadata["key"] for field in dataclasses.fields(section)}


def leaves(section: type, where: str = "") -> Iterator[tuple[str, Key]]:
    """The declarations of a section and of the sections in it: "seed", ..., "optimizer.momentum", ..."""
    for name, declared in keys(section).items():
        if isinstance(declared.default, type):
            yield from leaves(declared.default, f"{where}{name}.")
        else:
            yield where + name, declared


def default(section: type) -> ConfigDict:
    """The plain defaults of a section."""

    def plain(value: Any) -> Any:
        if isinstance(value, type):
            return default(value)
        if isinstance(value, dict):
            return ConfigDict({name: plain(v) for name, v in value.items()})
        return placeholder(str) if value is None or value is REQUIRED else value

    return ConfigDict({name: plain(declared.default) for name, declared in keys(section).items()})


def check(section: type[S], given: Any, where: str = "") -> S:
    """The typed section of plain values, which are all checked. Raises `UserError` in one line.

    Args:
      section: the dataclass.
      given: a `ConfigDict`; anything else is refused.
      where: "optimizer." in front of the names of its keys, for the messages.
    """
    legal = keys(section)
    if not isinstance(given, ConfigDict):
        raise UserError(f"{where[:-1]}={given!r}: must be a section with {', '.join(sorted(legal))}")
    for name in given:
        if name not in legal:
            raise UserError(f"unknown config key {where + str(name)!r}: {nearest(str(name), legal)}")
    for name in legal:
        if name not in given:
            raise UserError(f"config key {where + name!r} is missing")
    return section(**{name: _parse(declared, given[name], where + name) for name, declared in legal.items()})


def _parse(declared: Key, value: Any, where: str) -> Any:
    if isinstance(declared.default, type):
        return check(declared.default, value, where + ".")
    if declared.default is None and value in (None, "None"):  # as a flag says it
        return None
    kind = declared.kind
    if kind is not dict:  # which its own parser checks
        fits = isinstance(value, kind) or (kind is float and isinstance(value, int))
        if not fits or (isinstance(value, bool) and kind is not bool):
            raise UserError(f"{where}={value!r}: must be of type {kind.__name__}")
    try:
        return declared.parse(value)
    except ValueError as error:
        raise UserError(f"{where}={value!r}: {error}") from error


def plain(value: Any) -> Any:
    """What stands in config.json for a section, or for what was parsed in one."""
    if isinstance(value, Call | Rule):
        return value.source
    if dataclasses.is_dataclass(value) and all("key" in field.metadata for field in dataclasses.fields(value)):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    raise TypeError(f"{value!r} is not plain")


def help_text(section: type) -> str:
    """Every key of a section with its default and its text."""
    lines = []
    for name, declared in leaves(section):
        text = f"{name} [{declared.shown}]: {declared.text}"
        lines += textwrap.wrap(text, 100, initial_indent="  ", subsequent_indent="      ")
    return "\n".join(lines)


PAGE = """# Config keys

Made by `python -m nin_jax.config > docs/config.md`; do not edit.

An experiment (`experiments/NAME.py`) sets what differs from the defaults; `--config.KEY=VALUE` changes more. A run is resumed
only under the config that it was started with; keys marked *free* may change between two starts.

| key | default | meaning | |
|---|---|---|---|
{keys}

## Models, data sets, preprocessing and tasks

Their files explain the arguments. Those of the model are keys, `--config.model.dropout=0.3`; the others are written in the
call, `--config.dataset='folder(size=64)'`.

| | entry | arguments |
|---|---|---|
{entries}
"""


def page(section: type) -> str:
    """The text of docs/config.md: every key of a section, and the arguments of every entry that keys may name."""
    declared_keys, entries = [], []
    for name, declared in leaves(section):
        free = "" if declared.part_of_run else "free"
        declared_keys.append(f"| `{name}` | {declared.shown} | {declared.text} | {free} |")
    for kind in registry.KINDS:
        for name in registry.names(kind):
            with contextlib.suppress(UserError):  # an op of the other kind
                arguments = registry.legal_arguments(kind, registry.find(kind, name))
                entries.append(f"| {kind} | `{name}` | {', '.join(arguments)} |")
    return PAGE.format(keys="\n".join(declared_keys), entries="\n".join(entries))
