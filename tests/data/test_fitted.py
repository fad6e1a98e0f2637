"""Chains of preprocess entries: each is fitted on what those before it make."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nin_jax import registry
from nin_jax.data import fitted
from nin_jax.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (100, 5, 4, 3)).astype(np.uint8)
PAPER = ("gcn(scale=55)", "zca(eps=0.1)")


def gcn_reference(images: np.ndarray) -> np.ndarray:
    x = images - images.mean((1, 2, 3), keepdims=True)
    return 55 * x / np.sqrt((x**2).sum((1, 2, 3), keepdims=True))


@pytest.mark.parametrize("chunk", [7, 100, 1024])
def test_the_papers_chain_on_chunks(monkeypatch, chunk):
    """Contrast normalisation, then whitening fitted on its results, in float64 to 1e-4; any chunk gives the same."""
    monkeypatch.setattr(fitted, "CHUNK", chunk)
    ops = registry.calls("preprocess", PAPER)
    result = fitted.apply(ops, fitted.fit(ops, IMAGES), jnp.asarray(IMAGES))
    x = gcn_reference(IMAGES.astype(np.float64)).reshape(100, -1)
    x -= x.mean(0)
    values, vectors = np.linalg.eigh(x.T @ x / 100 + 0.1 * np.eye(60))
    expected = (x @ (vectors / np.sqrt(values)) @ vectors.T).reshape(IMAGES.shape)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_a_long_chain():
    """Fitted ops before, between and after those that learn nothing."""
    ops = registry.calls("preprocess", ("mean(per='channel')", "scale(divisor=2)", "gcn()", "mean()"))
    result = fitted.apply(ops, fitted.fit(ops, IMAGES), jnp.asarray(IMAGES))
    x = IMAGES.astype(np.float64)
    x = gcn_reference((x - x.mean((0, 1, 2))) / 2)
    np.testing.assert_allclose(result, x - x.mean(0), rtol=0, atol=1e-4 * np.abs(x).max())


def test_no_ops_give_the_pictures_as_float32():
    result = fitted.apply([], fitted.fit([], IMAGES), jnp.asarray(IMAGES))
    assert result.dtype == jnp.float32
    np.testing.assert_array_equal(result, IMAGES)


def test_a_fit_that_fails_is_a_mistake_that_names_the_call():
    (op,) = registry.calls("preprocess", ("zca(eps=1)",))
    ops = [dataclasses.replace(op, source="zca(eps='much')", arguments={"eps": "much"})]
    with pytest.raises(UserError, match=r"zca\(eps='much'\)"):
        fitted.fit(ops, IMAGES)


def test_augmentation_of_an_image_depends_on_its_key_and_the_ops_place():
    """Not on the batch it is in; and the same op at two places draws twice."""
    images = jnp.asarray(np.random.default_rng(1).standard_normal((200, 4, 4, 1)), jnp.float32)
    keys = jax.random.split(jax.random.key(2), 200)
    ops = registry.calls("augment", ("crop(pad=1)", "flip()"))
    whole = np.asarray(fitted.augment(ops, keys, images))
    order = np.array([7, 0, 199])
    np.testing.assert_array_equal(fitted.augment(ops, keys[order], images[order]), whole[order])

    once, twice = (registry.calls("augment", ("flip()",) * n) for n in (1, 2))
    mirrored = [
        (np.asarray(fitted.augment(ops, keys, images)) != np.asarray(images)).any((1, 2, 3)) for ops in (once, twice)
    ]
    second = mirrored[0] ^ mirrored[1]
    assert 60 < second.sum() < 140
    assert 60 < (second == mirrored[0]).sum() < 140
