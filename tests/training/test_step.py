"""A run does not depend on the number of devices, nor on what maps the step over them."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
from jax.sharding import AxisType

from benchmarks.scaling import all_reduced
from nin_jax import config as config_lib
from nin_jax import registry
from nin_jax.data import fitted, memory
from nin_jax.data.datasets import synthetic
from nin_jax.devices.mesh import AXIS, check_batch, host, replicate, shard_of_batch
from nin_jax.devices.replicas import compile_replicas, steps_per_dispatch
from nin_jax.errors import UserError
from nin_jax.layers import portable
from nin_jax.models.nin import Model
from nin_jax.training import optim
from nin_jax.training.evaluate import Evaluator
from nin_jax.training.state import AUGMENT, DROPOUT, Recipe, TrainState, init_state, random_key
from nin_jax.training.step import predict, train_steps
from nin_jax.training.tasks import classify

pytestmark = pytest.mark.usefixtures("fused")
SEED, UPDATES = np.uint32(7), 5
SHAPE = synthetic.info().image_shape
DEVICES = [
    *((1, "pmap"), (8, "pmap"), (2, "shard_map")),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in ((2, "pmap"), (1, "shard_map"), (8, "shard_map"))),
]


def mesh(n: int):
    return jax.make_mesh((n,), (AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:n])


@functools.cache
def recipe(batch_size: int = 16, plateau_epochs: int = 0, modern: bool = False) -> Recipe:
    """A small network with everything that is random: dropout, crop, flip; modern: and all that :fast adds."""
    c = config_lib.experiment("digits")
    c.optimizer.learning_rate_factors = ()
    c.optimizer.update({"learning_rate": 0.05, "momentum": 0.9, "weight_decay": 1e-3, "clip_norm": 1.0})
    c.schedule.plateau_epochs, c.batch_size = plateau_epochs, batch_size
    model = Model(
        10, kernels=(3, 3), widths=((8, 6), (8,)), pools=("max",), deviations=("he",), batch_norm=modern, axis_name=AXIS
    )
    objective = functools.partial(classify.objective, smoothing=0.1 * modern)
    preprocess = registry.calls("preprocess", ("scale(divisor=255)", "mean()"))
    augment = registry.calls("augment", ("crop(pad=2)", "flip()"))
    optimizer = optim.optimizer(config_lib.check(c), 4)
    return Recipe(model, classify, objective, preprocess, augment, batch_size, optimizer, ema_decay=0.6 * modern)


@functools.cache
def pictures(split: str):
    """Arrays and the preprocessing fitted on them. 64 training pictures are 4 batches: 5 updates reach a new epoch."""
    images, labels = synthetic.load(split)
    return memory.Arrays(memory.flat(images), labels), fitted.fit(recipe().preprocess, images)


def batches(m) -> tuple[memory.Shuffled, fitted.Stats]:
    """What a run's updates are made from, and the preprocessing, on the devices."""
    data, stats = replicate(pictures("train[:64]"), m)
    return memory.Shuffled(data, SHAPE, 16, int(SEED), m), stats


def updates_of(r: Recipe, m, mapper: str, most: int = 1):
    """The compiled updates, as a function `(state, step, count) -> (state, metrics)`, and the state before the first."""
    source, stats = batches(m)
    state = replicate(init_state(r, 0, synthetic.INFO.image_shape), m)
    rest = replicate((stats, SEED, np.int32(1)), m)
    compiled = compile_replicas(train_steps(r, source.draw, most), (state, source.like, *rest), m, mapper)

    def updates(state, step: int, count: int = 1):
        return compiled(state, source.at(step), *rest[:2], replicate(np.int32(count), m))

    updates.compiled = compiled
    return updates, state


trainer = functools.cache(lambda n, mapper: updates_of(recipe(), mesh(n), mapper))


def after_five(updates, state):
    """State and metrics after five updates, one by one."""
    rows = []
    for number in range(UPDATES):
        state, metrics = updates(state, number)
        rows.append(host(metrics))
    return host(state), jax.tree.map(lambda *x: np.concatenate(x), *rows)


def train(n: int, mapper: str):
    """Parameters and metrics after five updates."""
    state, metrics = after_five(*trainer(n, mapper))
    assert int(state.step) == UPDATES
    return state.params, metrics


first_run = functools.cache(train)


def by_hand():
    """The same five updates without devices: the whole batch at once, batches by NumPy from the epoch's order."""
    r, (data, stats) = recipe(), pictures("train[:64]")
    state = init_state(r, 0, synthetic.INFO.image_shape)
    params, opt_state = state.params, state.opt_state
    example = jnp.arange(16)

    @jax.jit
    def gradient(params, n, image, label):
        keys = jax.random.fold_in(random_key(SEED, AUGMENT), n)
        x = fitted.apply(r.preprocess, stats, image)
        x = fitted.augment(r.augment, jax.vmap(lambda i: jax.random.fold_in(keys, i))(example), x)
        dropout = jax.random.fold_in(random_key(SEED, DROPOUT), n)

        def loss(params):
            logits, _ = r.model.apply({"params": params}, x, train=True, rngs={"dropout": dropout})
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, label))

        return jax.value_and_grad(loss)(params)

    losses, optimizer = [], jax.jit(r.optimizer.update)
    for n in range(UPDATES):
        order = memory.epoch_order(int(SEED), n // 4, 64)
        rows = order[n % 4 * 16 : n % 4 * 16 + 16]
        loss, grads = gradient(
            params, jnp.int32(n), data.image[rows].reshape(-1, *SHAPE), jnp.asarray(data.label[rows])
        )
        updates, opt_state = optimizer(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        losses.append(float(loss))
    return params, losses


def assert_same_parameters(mine, theirs, tolerance: float) -> None:
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(mine), jax.tree.leaves(theirs), strict=True):
        atol = tolerance * np.abs(b).max()
        np.testing.assert_allclose(a, b, rtol=0, atol=atol, err_msg=jax.tree_util.keystr(path))


def test_one_device_trains_as_written_by_hand():
    """Dropout, crop and flip on. The parameters have moved by far more than the tolerance."""
    params, metrics = first_run(1, "pmap")
    expected, losses = by_hand()
    assert_same_parameters(params, expected, 1e-5)
    np.testing.assert_allclose(metrics["loss"], losses, rtol=1e-5)
    start = init_state(recipe(), 0, synthetic.INFO.image_shape).params
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(start), strict=True):
        assert np.abs(a - b).max() > 1e-3 * np.abs(a).max()


@pytest.mark.parametrize(("n", "mapper"), DEVICES[1:])
def test_any_number_of_devices_trains_the_same(n, mapper):
    """After five updates the parameters are those of one device to 1e-5, and the metrics too."""
    params, metrics = first_run(n, mapper)
    expected, their_metrics = first_run(1, "pmap")
    assert_same_parameters(params, expected, 1e-5)
    np.testing.assert_allclose(metrics["loss"], their_metrics["loss"], rtol=1e-5)
    for key in ("error", "constant"):
        np.testing.assert_array_equal(metrics[key], their_metrics[key])


@pytest.mark.parametrize(
    ("n", "mapper", "parts"), [pytest.param(1, "pmap", 4, marks=pytest.mark.slow), (2, "shard_map", 2)]
)
def test_a_batch_in_parts_trains_the_same(n, mapper, parts):
    """`accumulate`: parameters and metrics of five updates are those of the batch as a whole, dropout and crop included."""
    state, metrics = after_five(*updates_of(recipe()._replace(accumulate=parts), mesh(n), mapper))
    expected, their_metrics = first_run(1, "pmap")
    assert_same_parameters(state.params, expected, 1e-5)
    np.testing.assert_allclose(metrics["loss"], their_metrics["loss"], rtol=1e-5)
    for key in ("error", "constant"):
        np.testing.assert_array_equal(metrics[key], their_metrics[key])


@pytest.mark.parametrize(("n", "mapper"), DEVICES[1:3])
def test_an_update_sends_its_gradients_once(n, mapper):
    """The compiled update has one sum over the replicas, of all parameters and two metrics, and one maximum of the logits."""
    updates, state = trainer(n, mapper)
    sizes = all_reduced(updates.compiled)
    params = sum(p.size for p in jax.tree.leaves(state.params))
    assert sorted(sizes) == [2 * 10 * 4, (params + 2) * 4]


@pytest.mark.parametrize(("n", "mapper"), DEVICES)
def test_the_same_devices_train_the_same_to_the_last_bit(n, mapper):
    assert_same_parameters(train(n, mapper)[0], first_run(n, mapper)[0], 0.0)


@pytest.mark.parametrize(("n", "mapper"), [(8, "pmap"), (2, "shard_map")])
def test_a_class_whose_map_is_dead_shows(n, mapper):
    """Class 3 has the logit 0 for every image, and it alone is reported as constant."""
    updates, state = trainer(n, mapper)
    bias = state.params["mlpconv2"]["cccp2"]["bias"]
    params = jax.tree.map(lambda p: p, state.params)
    params["mlpconv2"]["cccp2"]["bias"] = (bias + 1).at[3].set(-100.0)
    _, metrics = updates(replicate(state.replace(params=params), mesh(n)), 0)
    np.testing.assert_array_equal(metrics["constant"], [np.arange(10) == 3])


@pytest.mark.parametrize(("n", "mapper"), [pytest.param(1, "pmap", marks=pytest.mark.slow), (8, "shard_map")])
def test_the_plateau_rule_sees_the_mistakes_of_the_whole_batch(n, mapper):
    """Five epochs of four updates, patience 1: the state has the mistakes in the metrics, and the rate they make."""
    updates, state = updates_of(recipe(plateau_epochs=1), mesh(n), mapper)
    best, drops, seen = math.inf, 0, []
    for number in range(5):
        epoch = 0
        for place in range(4):
            state, metrics = updates(state, 4 * number + place)
            epoch += round(16 * float(metrics["error"][0]))
            assert float(optim.plateau_scale(state.opt_state)) == pytest.approx(0.1 ** min(drops, 2))
        assert int(optax.tree_utils.tree_get(state.opt_state, "mistakes")) == epoch
        best, drops = min(best, epoch), drops + (epoch >= best)
        seen.append(drops)
    assert 0 < seen[-2] < 4  # there was progress, and there was none


@functools.cache
def modern_run(n: int, mapper: str) -> list[TrainState]:
    """States after 0 to 5 updates with batch normalisation, smoothed labels, an average and the plateau rule."""
    updates, state = updates_of(recipe(plateau_epochs=1, modern=True), mesh(n), mapper)
    states = [state]
    for number in range(UPDATES):
        states.append(updates(states[-1], number)[0])
    return host(states)


def assert_equal(mine, theirs) -> None:
    """To the last bit."""
    jax.tree.map(np.testing.assert_array_equal, host(mine), host(theirs))


def test_several_updates_in_one_dispatch_are_those_of_several_dispatches():
    """State with average, plateau rule and batch statistics, to the last bit, however the five updates are cut."""
    updates, state = updates_of(recipe(plateau_epochs=1, modern=True), mesh(1), "pmap", most=4)
    for cut in ((4, 1), (1, 3, 1), (2, 2, 1)):
        now, done = state, 0
        for count in cut:
            now, metrics = updates(now, done, count)
            assert (host(metrics)["loss"] > 0).tolist() == [i < count for i in range(4)]
            done += count
            assert_equal(now, modern_run(1, "pmap")[done])


@pytest.mark.parametrize(("n", "mapper"), [pytest.param(1, "pmap", marks=pytest.mark.slow), (2, "shard_map")])
def test_several_updates_in_microbatches_in_one_dispatch(n, mapper):
    """The same for gradient accumulation, and the metrics too."""
    r = recipe()._replace(accumulate=2)
    state, metrics = after_five(*updates_of(r, mesh(n), mapper))
    updates, start = updates_of(r, mesh(n), mapper, most=5)
    now, first = updates(start, 0, 4)
    now, last = updates(now, 4, 1)
    assert_equal(now, state)
    assert_equal(jax.tree.map(lambda a, b: np.concatenate([a[:4], b[:1]]), first, last), metrics)


@pytest.mark.parametrize(("n", "mapper"), [(2, "shard_map"), pytest.param(8, "pmap", marks=pytest.mark.slow)])
def test_batch_statistics_are_those_of_the_global_batch(n, mapper):
    """So parameters, running statistics and average do not depend on the number of devices."""
    mine, theirs = modern_run(n, mapper)[-1], modern_run(1, "pmap")[-1]
    assert_same_parameters(mine.variables, theirs.variables, 1e-4)
    assert_same_parameters(mine.params, theirs.params, 1e-4)


def test_running_statistics_are_those_of_the_batches():
    """Of conv1's output after the first update, by NumPy from the batch: 0.9 of what they started from and 0.1 of its."""
    r, (data, stats) = recipe(modern=True), pictures("train[:64]")
    before, after = modern_run(1, "pmap")[:2]
    rows = memory.epoch_order(int(SEED), 0, 64)[:16]
    keys = jax.random.fold_in(random_key(SEED, AUGMENT), 0)
    x = fitted.apply(r.preprocess, stats, data.image[rows].reshape(-1, *SHAPE))
    x = np.asarray(fitted.augment(r.augment, jax.vmap(lambda i: jax.random.fold_in(keys, i))(jnp.arange(16)), x))
    kernel = np.asarray(before.params["mlpconv1"]["conv1"]["kernel"], np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), (3, 3), (1, 2))
    y = np.einsum("bijckl,klcf->bijf", windows.astype(np.float64), kernel)
    running = after.batch_stats["mlpconv1"]["conv1_norm"]
    np.testing.assert_allclose(running["mean"], 0.1 * y.mean((0, 1, 2)), rtol=0, atol=1e-5)
    np.testing.assert_allclose(running["var"], 0.9 + 0.1 * y.var((0, 1, 2)), rtol=1e-4)


def test_the_average_forgets_what_it_started_from():
    """Of n updates it keeps min(0.6, n / (n + 10)), and so the parameters' and the running statistics' part."""
    states = modern_run(1, "pmap")
    mean = jax.tree.map(np.float64, states[0].current)
    for n, state in enumerate(states[1:], 1):
        keep = min(0.6, n / (n + 10))
        mean = jax.tree.map(lambda m, new, keep=keep: keep * m + (1 - keep) * new, mean, state.current)
    assert_same_parameters(states[-1].variables, mean, 1e-6)
    assert set(states[-1].variables) == {"params", "batch_stats"}
    assert not np.allclose(
        mean["params"]["mlpconv1"]["conv1"]["kernel"], states[-1].params["mlpconv1"]["conv1"]["kernel"]
    )


def pipeline(order, number, image, seed):
    """Rows, augmented pictures and dropout masks of a replica's share, joined again."""
    rows = shard_of_batch(memory.batch_indices(order, number, 16))
    example = shard_of_batch(jnp.arange(16))
    keys = jax.vmap(lambda i: jax.random.fold_in(random_key(seed, AUGMENT), i))(example)
    x = fitted.augment(recipe().augment, keys, image[rows].astype(jnp.float32))
    return jax.tree.map(lambda a: jax.lax.all_gather(a, AXIS, tiled=True), (rows, x))


@pytest.mark.parametrize(("n", "mapper"), DEVICES)
def test_the_batches_and_their_augmentation_are_the_same_on_any_number_of_devices(n, mapper):
    """To the last bit: shares put together are what one device draws."""
    images = pictures("train[:64]")[0].image.reshape(-1, *SHAPE)
    order = memory.epoch_order(int(SEED), 0, 64)
    arguments = replicate((order, np.int32(2), images, SEED), mesh(n))
    rows, x = compile_replicas(pipeline, arguments, mesh(n), mapper)(*arguments)
    np.testing.assert_array_equal(rows, order[32:48])
    keys = jax.vmap(lambda i: jax.random.fold_in(random_key(SEED, AUGMENT), i))(jnp.arange(16))
    alone = fitted.augment(recipe().augment, keys, jnp.asarray(images[rows], jnp.float32))
    np.testing.assert_array_equal(x, alone)


@pytest.mark.parametrize(
    ("n", "mapper", "batch_size", "most"),
    [(1, "shard_map", 50, 1), (2, "shard_map", 20, 1), (8, "pmap", 24, 1), (1, "pmap", 16, 3)],
)
def test_evaluation_counts_every_example_once(n, mapper, batch_size, most, monkeypatch):
    """50 images, so that the last batch is filled up: loss and error are those that NumPy has from the logits."""
    monkeypatch.setattr(memory, "steps_per_dispatch", lambda: most)
    (data, _), (_, stats) = pictures("test[:50]"), pictures("train[:64]")
    variables = {"params": first_run(1, "pmap")[0]}
    logits, _ = jax.jit(functools.partial(predict, recipe()))(variables, stats, data.image.reshape(-1, *SHAPE))
    logits = np.asarray(logits, np.float64)
    expected = {
        "loss": -scipy.special.log_softmax(logits, axis=1)[np.arange(50), data.label].mean(),
        "error_pct": 100 * (logits.argmax(1) != data.label).mean(),
        "examples": 50,
    }
    m = mesh(n)
    data, stats = replicate((data, stats), m)
    evaluator = Evaluator([recipe()], m, mapper, memory.InOrder(data, SHAPE, batch_size), [stats])
    assert evaluator([replicate(variables, m)]) == pytest.approx(expected, rel=1e-6)


def test_evaluation_stops_when_it_is_told_to():
    data, stats = replicate(pictures("test[:50]"), mesh(1))
    evaluator = Evaluator([recipe()], mesh(1), "pmap", memory.InOrder(data, SHAPE, 16), [stats])
    assert evaluator([replicate({"params": first_run(1, "pmap")[0]}, mesh(1))], stopped=lambda: True) is None


def test_a_batch_that_cannot_be_shared_is_a_mistake_that_names_the_nearest():
    check_batch(24, mesh(8), 1)
    check_batch(48, mesh(8), 3)
    with pytest.raises(
        UserError, match=r"batch_size=40 .* 8 devices in accumulate=3 parts each; the nearest that can is 48"
    ):
        check_batch(40, mesh(8), 3)
    for batch_size, near in ((1, 8), (13, 16), (27, 24)):
        with pytest.raises(UserError, match=rf"batch_size={batch_size} .* 8 devices; the nearest that can is {near}$"):
            check_batch(batch_size, mesh(8), 1)


def test_an_evaluation_has_as_few_dispatches_as_can_be_and_all_alike(monkeypatch):
    """Ten batches, at most four a dispatch."""
    monkeypatch.setattr(memory, "steps_per_dispatch", lambda: 4)
    source = memory.InOrder(pictures("test[:50]")[0], SHAPE, 5)
    assert (source.batches, source.batches_per_dispatch, len(list(source))) == (10, 4, 3)


@pytest.mark.parametrize(
    ("precision", "wanted"),
    [("float32", jax.lax.Precision.HIGHEST), ("tensorfloat32", jax.lax.Precision.HIGH), ("bfloat16", None)],
)
def test_every_product_of_the_network_and_of_its_gradient_has_the_precision(precision, wanted):
    """Off CPUs, which have float32 alone: whatever the device does by default. bfloat16 asks for nothing more."""

    def precisions(jaxpr) -> list:
        found = []
        for eqn in jaxpr.eqns:
            if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
                found.append(eqn.params["precision"])
            for value in jax.tree.leaves(eqn.params, is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")):
                found += (
                    precisions(getattr(value, "jaxpr", value))
                    if hasattr(value, "eqns") or hasattr(value, "jaxpr")
                    else []
                )
        return found

    r = recipe()._replace(precision=precision)
    variables = init_state(r, 0, SHAPE).current

    def total(params, image):
        return jnp.sum(r.apply(variables | {"params": params}, image, train=False)[0])

    with portable(True):
        found = precisions(jax.make_jaxpr(jax.grad(total))(variables["params"], jnp.zeros((2, *SHAPE))).jaxpr)
    allowed = {(wanted, wanted)} if wanted else {None, (jax.lax.Precision.DEFAULT,) * 2}
    assert len(found) > 10
    assert {p if p is None or isinstance(p, tuple) else (p, p) for p in found} <= allowed


def test_an_accelerator_gets_up_to_a_hundred_updates_a_dispatch_and_a_cpu_one(monkeypatch):
    assert steps_per_dispatch() == 1
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert steps_per_dispatch() == 100
