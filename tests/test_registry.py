"""Entries by name, the contracts they keep, and their calls; and what every model of the zoo must do."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nin_jax import registry
from nin_jax.errors import UserError


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ("gcn", ("gcn", {})),
        (" gcn() ", ("gcn", {})),
        ("gcn(scale=55, use_std=True)", ("gcn", {"scale": 55, "use_std": True})),
        ("mean(per='channel')", ("mean", {"per": "channel"})),
        ("scale(divisor=None)", ("scale", {"divisor": None})),
        ("crop(pad=-4)", ("crop", {"pad": -4})),
        ("mine.ops.op(x=(1, [2]))", ("mine.ops.op", {"x": (1, [2])})),
    ],
)
def test_calls(text: str, call: tuple[str, dict[str, Any]]) -> None:
    assert registry.parse_call(text) == call


@pytest.mark.parametrize(
    "text",
    ["", "gcn(", "gcn(55)", "gcn(**{})", "gcn(scale=x)", "gcn(scale=1)(2)", "f().g()", "1", "gcn;gcn", "gcn(a=1, a=2)",
     "a if b else c", "gcn(scale=1+1)", "lambda: 0", "\0", "(" * 300, "-" * 100_000 + "1", "'\\d'", "x[0](a=1)",
     "__import__('os').system('touch executed')", "gcn(scale=__import__('os').system('touch executed'))"],
)  # fmt: skip
def test_what_is_no_call(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="is not a call such as"):
        registry.parse_call(text)
    assert not list(tmp_path.iterdir())


@settings(max_examples=200)
@given(st.text(max_size=30) | st.text("gcn(sale=15,'\"[]{}:*.- \n\\#)", max_size=30))
def test_any_text_is_a_call_or_a_mistake(text: str) -> None:
    try:
        name, arguments = registry.parse_call(text)
    except UserError:
        return
    assert all(part.isidentifier() for part in name.split("."))
    assert all(isinstance(key, str) for key in arguments)


@pytest.mark.parametrize("kind", registry.KINDS)
def test_entries_are_files_that_keep_the_contract(kind: str) -> None:
    """The ops of data/preprocess/ are of one kind or of the other."""
    package = importlib.import_module(registry.KINDS[kind].package)
    files = sorted(f.stem for f in Path(package.__path__[0]).glob("[!_]*.py"))
    assert registry.names(kind) == files
    if kind in ("preprocess", "augment"):
        files = [name for name in files if (name in ("crop", "flip", "hypotheses")) == (kind == "augment")]
    assert files
    assert [registry.find(kind, name).__name__ for name in files] == [f"{package.__name__}.{name}" for name in files]


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("models", "lacking", "model 'lacking.entry': the module has no Model"),
        ("datasets", "load = len", "dataset 'lacking.entry': the module has no INFO"),
        ("datasets", "INFO = 1", "dataset 'lacking.entry': the module has no load"),
        ("preprocess", "fit = apply = len", "preprocess op 'lacking.entry': the module has no PER_IMAGE"),
        ("preprocess", "RANDOM, apply = True, len", "preprocess op 'lacking.entry' belongs under 'augment', not 'preprocess'"),
        ("augment", "apply = len", "preprocess op 'lacking.entry' belongs under 'preprocess', not 'augment'"),
        ("tasks", "objective = len", "task 'lacking.entry': the module has no per_example, no combine"),
    ],
)  # fmt: skip
def test_a_module_that_does_not_keep_the_contract_is_named(
    kind: str, text: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("lacking.entry")
    exec(text if "=" in text else "", vars(module))
    monkeypatch.setitem(sys.modules, "lacking", ModuleType("lacking"))
    monkeypatch.setitem(sys.modules, "lacking.entry", module)
    with pytest.raises(UserError) as caught:
        registry.find(kind, "lacking.entry")
    assert str(caught.value) == said


def test_entries_outside_the_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found in the working directory, which hides neither the zoo nor what is installed; never one of Python's modules."""
    (tmp_path / "my_zoo").mkdir()
    for name in ("my_zoo/net", "my_net", "nin", "flax", "this"):
        (tmp_path / f"{name}.py").write_text("from nin_jax.models.maxout import Model\n")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"unknown model 'my_net': .*; and there is no my_net\.py of your own here"):
        registry.find("models", "my_net")
    registry.search_working_directory()
    registry.search_working_directory()
    assert sys.path.count(str(tmp_path)) == 1
    assert registry.find("models", "my_zoo.net").Model is registry.find("models", "my_net").Model
    assert registry.find("models", "nin").__name__ == "nin_jax.models.nin"
    with pytest.raises(UserError, match="model 'flax': the module has no Model"):
        registry.find("models", "flax")
    for name in ("this", "my_zoo"):
        with pytest.raises(UserError, match=f"unknown model '{name}'"):
            registry.find("models", name)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("from nin_jax.models.nin import NoSuchModel", "ImportError: cannot import name 'NoSuchModel'"),
        ("def f(:", r"SyntaxError: .* \(bad_net.py, line 2\)"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("exit(3)", "SystemExit: 3"),
        ("class Model:\n    width: Nowhere", "an annotation cannot be evaluated: name 'Nowhere' is not defined"),
    ],
)
def test_a_mistake_in_a_module_of_the_user(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, whatever its import raises."""
    (tmp_path / "my").mkdir()
    (tmp_path / "my/bad_net.py").write_text(f"from __future__ import annotations\n{text}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my", raising=False)
    with pytest.raises(UserError, match=rf"model 'my\.bad_net': {said}"):
        registry.legal_arguments("models", registry.find("models", "my.bad_net"))
    sys.modules.pop("my.bad_net", None)


def test_a_call_is_an_entry_with_arguments_of_the_right_type() -> None:
    """It is written as it was read; what an entry has no argument for, or of another type, is refused."""
    call = registry.call("preprocess", "gcn(scale=55)")
    assert (str(call), call.name, call.arguments, call.entry.__name__.split(".")[-1]) == ("gcn(scale=55)", "gcn", {"scale": 55}, "gcn")  # fmt: skip
    with pytest.raises(
        UserError, match=r"op gcn has no argument 'skale': did you mean 'scale'\? \(valid: scale, sqrt_bias"
    ):
        registry.call("preprocess", "gcn(skale=55)")
    with pytest.raises(UserError, match="dataset folder: size='big': 'big' must be of type int"):
        registry.call("datasets", "folder(size='big')")


@pytest.mark.parametrize("name", ["", "nin ", "nin;", "../nin", "nin.", ".nin", "a b.c", "\0"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(UserError, match="unknown model"):
        registry.find("models", name)


@pytest.mark.parametrize(
    ("hint", "good", "bad"),
    [
        (int, [0, -1], [True, 1.0, "1", None]),
        (float, [0, 0.5], [True, float("nan"), float("inf"), "1"]),
        (bool, [True], [1, None, "yes"]),
        (str, [""], [1, None]),
        (float | None, [None, 1], ["1"]),
        (Literal["a", "b"], ["a"], ["c", None, ["a"]]),
        (Sequence[int], [(), (1,), [1, 2]], [1, "1", (1, "2"), {1: 2}]),
        (Sequence[Sequence[int]], [((1,), [2])], [(1,), ((1,), (None,))]),
        (Sequence[float | Literal["he"]], [("he", 1, 0.5)], [("she",)]),
        (dict, [1, "anything"], []),
    ],
)
def test_values_and_their_annotations(hint: Any, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        registry.check_arguments("call", {"x": hint}, {"x": value})
    for value in bad:
        with pytest.raises(UserError, match="call: x="):
            registry.check_arguments("call", {"x": hint}, {"x": value})


LITERALS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(["scale", "eps", "pad", "x_1"]), LITERALS))
def test_a_call_of_literals_is_taken_apart_into_them(arguments):
    text = f"gcn({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
    assert registry.parse_call(text) == ("gcn", arguments)


# --- the models ----------------------------------------------------------------------------------------------------

CLASSES = 42


def network(module: ModuleType, dtype: str) -> tuple[Any, jax.Array]:
    """A model, with few hidden units: the fully connected layers of the ImageNet nets are most of what they take."""
    few = {"hidden": (64, 64)} if hasattr(module.Model, "hidden") else {}
    image = jnp.asarray(np.random.default_rng(0).standard_normal((3, 32, 32, 3)), jnp.float32)
    return module.Model(num_classes=CLASSES, dtype=jnp.dtype(dtype), **few), image


def keeps_the_contract(module: ModuleType, dtype: str) -> np.ndarray:
    """Checks the model in the test and the gradient of the training loss, for three 32x32 images; returns the logits."""
    model, image = network(module, dtype)

    def loss(params):
        logits, _ = model.apply({"params": params}, image, train=True, rngs={"dropout": jax.random.key(1)})
        return jnp.mean(jnp.square(logits - 1))

    @jax.jit
    def everything(key):
        params = model.init(key, image, train=False)["params"]
        return params, *model.apply({"params": params}, image.astype(dtype), train=False), jax.grad(loss)(params)

    params, logits, maps, gradient = everything(jax.random.key(0))
    assert (logits.shape, logits.dtype) == ((3, CLASSES), jnp.float32)
    assert np.isfinite(logits).all()
    assert maps
    for key, m in maps.items():
        assert (isinstance(key, str), m.ndim, m.shape[0]) == (True, 4, 3), key
    if "class_maps" in maps:  # a network that ends in dense layers has none
        assert maps["class_maps"].shape[-1] == CLASSES
    assert jax.tree.structure(gradient) == jax.tree.structure(params)
    for (path, p), g in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(gradient), strict=True):
        assert (p.dtype, g.shape, g.dtype) == (jnp.float32, p.shape, jnp.float32), path
        assert np.isfinite(g).all(), path
        assert np.any(g), path
    return np.asarray(logits)


# By default the stages of one network and the layers of the rivals; nin_imagenet's stages are those of the large ones.
LARGE = ("alexnet", "convnet", "hcp", "network_in_zfnet", "nin", "zfnet")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in registry.names("models")]
)
def test_every_model_keeps_the_contract(name):
    """Finite float32 logits for any number of classes, 4-D maps, float32 parameters, and a gradient for each of them."""
    keeps_the_contract(registry.find("models", name), "float32")


@pytest.mark.slow
@pytest.mark.parametrize("name", registry.names("models"))
def test_every_model_computes_in_bfloat16_about_what_it_does_in_float32(name):
    module = registry.find("models", name)
    model, image = network(module, "float32")
    exact, _ = jax.jit(lambda key: model.init_with_output(key, image, train=False)[0])(jax.random.key(0))
    exact, rounded = np.asarray(exact), keeps_the_contract(module, "bfloat16")
    assert 0 < np.abs(exact - rounded).max() < 0.05 * np.abs(exact).max()
