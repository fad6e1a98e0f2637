"""Which examples a batch holds: every one exactly once, as a function of (seed, step) and of nothing else."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nin_jax.data import memory


def order(seed: int, epoch: int, examples: int = 50) -> np.ndarray:
    return memory.epoch_order(seed, epoch, examples)


@given(seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 10_000), examples=st.sampled_from([1, 2, 50]))
def test_an_epochs_order_is_a_permutation(seed, epoch, examples):
    """The same one at every call."""
    result = order(seed, epoch, examples)
    np.testing.assert_array_equal(np.sort(result), np.arange(examples))
    np.testing.assert_array_equal(result, order(seed, epoch, examples))


def test_orders_of_other_epochs_and_seeds_are_others():
    """Of 50 examples two orders have about one in the same place; ten would be a wonder."""
    orders = [order(seed, epoch) for seed in (0, 1, 2**32 - 1) for epoch in range(4)]
    for i, a in enumerate(orders):
        for b in orders[:i]:
            assert (a == b).sum() < 10


def test_every_example_comes_first_equally_often():
    """400 orders of 8: the first is uniform by chi squared (mean 7; 30 has a probability of 1e-4)."""
    first = [memory.epoch_order(3, epoch, 8)[0] for epoch in range(400)]
    counts = np.bincount(np.asarray(first), minlength=8)
    assert ((counts - 50) ** 2 / 50).sum() < 30


@pytest.mark.parametrize(("examples", "batch_size"), [(50, 10), (50, 16), (50, 50), (7, 2)])
def test_the_batches_of_an_epoch_are_disjoint(examples, batch_size):
    """They are the order cut into pieces, in every epoch alike; what is left over is less than a batch."""
    batches = examples // batch_size
    for epoch in (0, 3):
        drawn = jnp.asarray(order(1, epoch, examples))
        steps = [epoch * batches + k for k in range(batches)]
        rows = np.concatenate([memory.batch_indices(drawn, jnp.int32(n), batch_size) for n in steps])
        np.testing.assert_array_equal(rows, drawn[: batches * batch_size])
        assert examples - len(np.unique(rows)) < batch_size


@given(examples=st.integers(1, 60), batch_size=st.integers(1, 25))
def test_evaluation_covers_every_example_exactly_once(examples, batch_size):
    """In order, with weight 1; what fills the last batch, and any batch after it, has weight 0 and a legal index."""
    batches = -(-examples // batch_size) + 1
    index, weight = jax.vmap(lambda b: memory.eval_indices(b, examples, batch_size))(jnp.arange(batches))
    index, weight = np.asarray(index).ravel(), np.asarray(weight).ravel()
    assert index.min() >= 0
    assert index.max() < examples
    np.testing.assert_array_equal(index[weight == 1], np.arange(examples))
    np.testing.assert_array_equal(np.unique(weight), [0, 1])


@given(examples=st.integers(1, 3000), batch_size=st.integers(1, 1200), devices=st.sampled_from([1, 2, 3, 16]))
def test_batches_of_an_evaluation_are_even(examples, batch_size, devices):
    """As few as can be of at most `batch_size`, shared alike by the devices; less than a step of theirs is empty in each."""
    size = memory.even_batches(examples, batch_size, devices)
    step = (8 if batch_size >= 8 * devices else 1) * devices
    batches, most = -(-examples // size), max(step, batch_size - batch_size % step)
    assert size % step == 0
    assert size <= most
    assert batches == -(-examples // most)
    assert size - examples / batches < step


def test_an_evaluation_of_ten_thousand_has_no_empty_place():
    assert memory.even_batches(10_000, 1024, 1) == 1000
