"""Entries by name. The file's name is the key: `models/nin.py` is the model "nin"; to add one, add a file.

A dotted path (`my_package.my_model`) names a module outside the zoo in the same way.
"""

from __future__ import annotations

import ast
import importlib
import math
import pkgutil
import types
import typing
import warnings
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from nin_jax.errors import UserError, nearest

# What the entries of a folder are called, and what each of them has.
KINDS = {
    "models": ("model", "Model"),
    "datasets": ("dataset", "load"),
    "preprocess": ("preprocess op", "apply"),
    "tasks": ("task", "objective"),
}

PACKAGES = {
    "models": "nin_jax.models",
    "datasets": "nin_jax.data.datasets",
    "preprocess": "nin_jax.data.preprocess",
    "tasks": "nin_jax.training.tasks",
}


def names(folder: str) -> list[str]:
    """Names of the entries of a folder of the zoo ("models", "datasets", "preprocess", "tasks"), sorted."""
    package = importlib.import_module(PACKAGES[folder])
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))


def find(folder: str, name: str) -> ModuleType:
    """The module of an entry, by file name or dotted path. Raises `UserError` with the nearest name."""
    kind, wanted = KINDS[folder]
    if name in names(folder):
        return importlib.import_module(f"{PACKAGES[folder]}.{name}")
    if "." not in name or not all(part.isidentifier() for part in name.split(".")):
        raise UserError(f"unknown {kind} {name!r}: {nearest(name, names(folder))}")
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{kind} {name!r}: {error}") from error
    if not hasattr(module, wanted):
        raise UserError(f"{kind} {name!r}: the module has no {wanted}")
    return module


def parse_call(text: str) -> tuple[str, dict[str, Any]]:
    """Takes "gcn(scale=55)" apart into ("gcn", {"scale": 55}). Only literals; nothing is executed.

    Raises `UserError` when the text is anything but a name or a call with keyword literals.
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


def check_arguments(what: str, legal: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Raises `UserError` for an argument that there is not, or whose value its annotation does not allow.

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
