"""Entries by name. The file's name is the key: `models/nin.py` is the model "nin"; to add one, add a file.

A dotted path (`my_package.my_model`) names a module outside the zoo in the same way.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
from types import ModuleType
from typing import Any

from nin_jax.errors import Mistake, nearest

KINDS = {"models": "model", "datasets": "dataset", "preprocess": "preprocess op", "tasks": "task"}


def names(folder: str) -> list[str]:
    """Names of the entries of a folder of the zoo ("models", "datasets", "preprocess", "tasks"), sorted."""
    package = importlib.import_module(f"nin_jax.{folder}")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))


def find(folder: str, name: str) -> ModuleType:
    """The module of an entry, by file name or dotted path. Raises `Mistake` with the nearest name."""
    if name in names(folder):
        return importlib.import_module(f"nin_jax.{folder}.{name}")
    if "." in name and all(part.isidentifier() for part in name.split(".")):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise Mistake(f"{KINDS[folder]} {name!r}: {error}") from error
    raise Mistake(f"unknown {KINDS[folder]} {name!r}: {nearest(name, names(folder))}")


def parse_call(text: str) -> tuple[str, dict[str, Any]]:
    """Takes "gcn(scale=55)" apart into ("gcn", {"scale": 55}). Only literals; nothing is executed.

    Raises `Mistake` when the text is anything but a name or a call with keyword literals.
    """
    wanted = f"{text!r} is not a call such as 'gcn(scale=55)' with literal keyword arguments"
    try:
        node = ast.parse(text.strip(), mode="eval").body
        call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
        if call.args or any(k.arg is None for k in call.keywords):
            raise ValueError
        name = ast.unparse(call.func)
        if not all(part.isidentifier() for part in name.split(".")):
            raise ValueError
        return name, {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise Mistake(wanted) from error
