"""Entries by name; and what every model of the zoo must do."""

from __future__ import annotations

import functools
import sys
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nin_jax import registry
from nin_jax.errors import UserError


def test_the_files_are_the_names():
    assert "nin" in registry.names("models")
    assert registry.names("preprocess") == sorted(registry.names("preprocess"))
    assert {"crop", "flip", "gcn", "lcn", "mean", "scale", "zca"} <= set(registry.names("preprocess"))
    for folder in registry.KINDS:
        for name in registry.names(folder):
            assert registry.find(folder, name).__name__ == f"nin_jax.{folder}.{name}"


@pytest.mark.parametrize(
    ("folder", "name", "message"),
    [
        ("models", "nim", "unknown model 'nim': did you mean 'nin'"),
        ("datasets", "cifar", "unknown dataset 'cifar': did you mean 'cifar10"),
        ("preprocess", "gcm", "unknown preprocess op 'gcm': did you mean 'gcn'"),
        ("tasks", "", "unknown task ''"),
        ("models", "no_such_package.model", "no_such_package"),
        ("models", "../nin", "unknown model"),
    ],
)
def test_an_unknown_name_is_a_mistake_that_names_the_nearest(folder, name, message):
    with pytest.raises(UserError, match=message.replace("..", r"\.\.").replace("?", r"\?")):
        registry.find(folder, name)


def test_a_dotted_path_names_a_module_outside_the_zoo(tmp_path, monkeypatch):
    (tmp_path / "outside_the_zoo").mkdir()
    (tmp_path / "outside_the_zoo" / "their_model.py").write_text("Model = 'theirs'\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert registry.find("models", "outside_the_zoo.their_model").Model == "theirs"
    for name in ("outside_the_zoo.their_model", "outside_the_zoo"):
        monkeypatch.delitem(sys.modules, name)


LITERALS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(["scale", "eps", "pad", "x_1"]), LITERALS))
def test_a_call_of_literals_is_taken_apart_into_them(arguments):
    text = f"gcn({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
    assert registry.parse_call(text) == ("gcn", arguments)


@pytest.mark.parametrize("text", ["gcn", " gcn ", "gcn()"])
def test_a_name_alone_is_a_call_without_arguments(text):
    assert registry.parse_call(text) == ("gcn", {})


@pytest.mark.parametrize(
    "text",
    ["gcn(55)", "gcn(*a)", "gcn(**a)", "gcn(scale=f())", "gcn(x=1, x=2)", "f()()", "1", "", "gcn(", "a b", "x=1"],
)
def test_what_is_no_such_call_is_a_mistake(text):
    with pytest.raises(UserError, match="is not a call such as"):
        registry.parse_call(text)


def test_nothing_is_executed(tmp_path):
    file = tmp_path / "made"
    with pytest.raises(UserError):
        registry.parse_call(f"gcn(scale=open({str(file)!r}, 'w'))")
    assert not file.exists()


# --- the models ----------------------------------------------------------------------------------------------------

CLASSES = 42


@functools.cache
def forward_and_gradient(module: ModuleType, dtype: str):
    """Parameters, logits and maps in the test, and the gradient of the training loss, for three 32x32 pictures."""
    # The fully connected layers of the ImageNet nets are most of what they take.
    few = {"hidden": (64, 64)} if hasattr(module.Model, "hidden") else {}
    model = module.Model(num_classes=CLASSES, dtype=jnp.dtype(dtype), **few)
    image = jnp.asarray(np.random.default_rng(0).standard_normal((3, 32, 32, 3)), jnp.float32)

    def loss(params):
        logits, _ = model.apply({"params": params}, image, train=True, rngs={"dropout": jax.random.key(1)})
        return jnp.mean(jnp.square(logits - 1))

    @jax.jit
    def everything(key):
        params = model.init(key, image, train=False)["params"]
        return params, *model.apply({"params": params}, image.astype(dtype), train=False), jax.grad(loss)(params)

    return everything(jax.random.key(0))


LARGE = ("alexnet", "network_in_zfnet", "zfnet")  # their stages are those of nin_imagenet, which is checked each time


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in registry.names("models")]
)
def test_every_model_keeps_the_contract(name, dtype):
    """Finite float32 logits for any number of classes, 4-D maps, float32 parameters, and a gradient for each of them."""
    params, logits, maps, gradient = forward_and_gradient(registry.find("models", name), dtype)
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


@pytest.mark.slow
@pytest.mark.parametrize("name", registry.names("models"))
def test_every_model_computes_in_bfloat16_about_what_it_does_in_float32(name):
    module = registry.find("models", name)
    exact, rounded = (np.asarray(forward_and_gradient(module, dtype)[1]) for dtype in ("float32", "bfloat16"))
    assert 0 < np.abs(exact - rounded).max() < 0.05 * np.abs(exact).max()
