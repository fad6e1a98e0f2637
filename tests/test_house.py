"""The package shows its architecture: who may import what, and what lies on the top level."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "nin_jax"
FLOORS = (
    {"errors"},
    {"arguments", "console", "storage"},
    {"registry"},
    {"schema"},
    {"layers"},
    {"models", "devices"},
    {"data"},
    {"config"},
    {"runs"},
    {"training"},
    {"main"},
    {"paper"},
    {"weights"},
    {"page", "detection"},
    {"cli"},
    {"__main__"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
TOP = {
    "__init__.py",
    "__main__.py",
    "main.py",
    "arguments.py",
    "config.py",
    "registry.py",
    "schema.py",
    "errors.py",
    "console.py",
    "storage.py",
}
ROOMS = {"layers", "models", "devices", "data", "runs", "training", "paper", "weights", "page", "detection", "cli"}
LAYERS = {"jax", "flax", "numpy", "optax"}
# The command line uses the public names too.
PUBLIC = {"cli": {""}, "__main__": {"__version__"}}
# Where a library may be imported; elsewhere its place's own functions are used.
PLACES = {
    "orbax": ("runs/checkpoint.py",),
    "tensorflow_datasets": ("data/",),
    "rich": ("console.py",),
    "absl": ("main.py", "detection/main.py", "data/prepare/", "data/stream.py"),
}
# What asks which device or version it runs on stands apart from the mathematics.
SWITCHES = ("platform_dependent", "default_backend", "__version_info__")
SWITCHED = ("layers/conv.py", "layers/cpu/", "devices/")
FILES = sorted(ROOT.rglob("*.py"))
# Rooms of the checkout above the package: each imports the package and itself.
ABOVE = ("experiments", "launch", "benchmarks")
FILES_ABOVE = [file for room in ABOVE for file in sorted((ROOT.parent / room).rglob("*.py"))]


def path(file: Path) -> str:
    return file.relative_to(ROOT if ROOT in file.parents else ROOT.parent).as_posix()


def imports(file: Path) -> Iterator[str]:
    """Every module that a file imports, those inside functions too; not those that only type checkers see."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("file", FILES, ids=path)
def test_a_file_imports_from_below(file):
    room = path(file).split("/")[0].removesuffix(".py")
    if room == "__init__":  # the public names, which lie on every floor
        return
    for name in imports(file):
        package, _, rest = name.partition(".")
        if package == "nin_jax":
            target = rest.split(".")[0]
            below = target in FLOOR and FLOOR[target] < FLOOR[room]
            assert below or target in {room, *PUBLIC.get(room, ())}, f"{path(file)} imports {name}"
            assert room != "layers" or target == "layers", f"{path(file)} imports {name}"
        elif room == "layers":
            assert package in LAYERS or package in __import__("sys").stdlib_module_names, f"{path(file)} imports {name}"
        assert package not in PLACES or path(file).startswith(PLACES[package]), f"{path(file)} imports {name}"
        assert package not in ABOVE, f"{path(file)} imports {name}"
        assert not name.startswith("jax._src"), f"{path(file)} imports {name}"


def test_imports_go_in_no_circle():
    modules = {path(file).removesuffix(".py").removesuffix("/__init__").replace("/", "."): file for file in FILES}

    def module(name: str) -> str:
        name = name.removeprefix("nin_jax.")
        while name and name not in modules:
            name = name.rpartition(".")[0]
        return name

    graphlib.TopologicalSorter(
        {name: {module(other) for other in imports(file)} - {name, ""} for name, file in modules.items()}
    ).prepare()


@pytest.mark.parametrize("file", FILES_ABOVE, ids=path)
def test_a_file_above_the_package_keeps_to_its_room(file):
    room = path(file).split("/")[0]
    for name in imports(file):
        assert name.split(".")[0] not in {*ABOVE, "tests"} - {room}, f"{path(file)} imports {name}"
        assert room == "launch" or not name.startswith("absl"), f"{path(file)} imports {name}"


@pytest.mark.parametrize("file", FILES, ids=path)
def test_what_knows_devices_stands_apart(file):
    if not path(file).startswith(SWITCHED):
        text = file.read_text()
        assert not [switch for switch in SWITCHES if switch in text]


def test_nothing_else_lies_on_the_top_level():
    assert {p.name for p in ROOT.iterdir() if p.suffix == ".py" or any(p.rglob("*.py"))} <= TOP | ROOMS


@pytest.mark.parametrize("file", [*FILES, *FILES_ABOVE], ids=path)
def test_files_functions_and_classes_are_short(file):
    text = file.read_text()
    assert len(text.splitlines()) <= 350
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            longest = 150 if isinstance(node, ast.ClassDef) else 100
            assert (node.end_lineno or 0) - node.lineno < longest, f"{node.name} in {path(file)}"


@pytest.mark.parametrize("file", sorted(Path(__file__).parent.rglob("*.py")), ids=lambda file: file.name)
def test_tests_use_no_private_names(file):
    """A test that binds a private name breaks when the code is written better."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id not in ("self", "os"):
            public = not node.attr.startswith("_") or node.attr.startswith("__")
            assert public or node.attr in ("_replace", "_asdict", "_fields"), f"{node.value.id}.{node.attr}"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nin_jax"):
            assert not [alias.name for alias in node.names if alias.name.startswith("_") and alias.name != "__main__"]
