"""Starting from the weights of another run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import nin_jax
from nin_jax import main
from nin_jax.errors import UserError
from nin_jax.training.load import merge

ROOT = Path(__file__).parents[2]
NARROW = "--config.model.widths=((4, 3), (6,))"
WORDS = ["nin_jax", "--config=digits", "--config.epochs=1"]


def train(folder, *words, widths=NARROW, factors="--config.optimizer.learning_rate_factors=()"):
    main.run(main.parse([*WORDS, f"--workdir={folder}", widths, factors, *words]))
    return flatten_dict(jax.tree.map(np.asarray, nin_jax.load_run(str(folder)).params), sep="/")


pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transfer") / "first"
    return folder, train(folder)


def test_what_fits_is_taken_and_the_rest_is_named(trained, tmp_path, capsys):
    """At rate 0 a run ends with what it started from: all of the first run's but the last two layers, one of them wider."""
    folder, theirs = trained
    capsys.readouterr()
    words = [f"--config.init_from={folder}", "--config.optimizer.learning_rate=0.0"]
    mine = train(tmp_path / "second", *words, widths="--config.model.widths=((4, 3), (7,))")
    err = capsys.readouterr().err
    kept = {path for path in mine if not np.array_equal(mine[path], theirs[path])}
    assert {path.split("/")[1] for path in kept} == {"conv2", "cccp2"}
    said = next(line for line in err.splitlines() if "newly initialised" in line)
    for path in ("mlpconv2/conv2/kernel", "mlpconv2/conv2/bias", "mlpconv2/cccp2/kernel"):
        assert path in said
    assert "conv1" not in said
    assert "mlpconv2/cccp2/bias" not in said  # ten numbers in both


def test_a_shipped_network_is_named_as_it_is_for_load(tmp_path):
    """At rate 0 a run ends with its weights; a name that is none is a mistake."""
    words = ["--config.optimizer.learning_rate=0.0", "--config.train_split=train[:64]", "--config.eval_split=test[:64]"]
    mine = train(tmp_path / "run", "--config.init_from=nin.digits", *words, widths="--config.model.name=nin")
    theirs = flatten_dict(dict(nin_jax.load("nin.digits").params), sep="/")
    assert mine.keys() == theirs.keys()
    assert all(np.array_equal(mine[path], theirs[path]) for path in mine)
    with pytest.raises(
        UserError, match=r"no trained network 'nin\.digit', and no such folder: did you mean 'nin\.digits'"
    ):
        train(tmp_path / "other", "--config.init_from=nin.digit")


def test_a_resumed_run_does_not_need_the_other_one(trained, tmp_path):
    folder, _ = trained
    (tmp_path / "first").symlink_to(folder)
    words = [f"--config.init_from={tmp_path / 'first'}", "--config.epochs=2"]
    train(tmp_path / "second", *words)
    (tmp_path / "first").unlink()
    (tmp_path / "second/summary.json").unlink()
    train(tmp_path / "second", *words)


def test_a_factor_of_0_freezes(trained, tmp_path):
    folder, theirs = trained
    frozen = "--config.optimizer.learning_rate_factors=('mlpconv1/=0',)"
    mine = train(tmp_path / "second", f"--config.init_from={folder}", factors=frozen)
    same = {path for path in mine if np.array_equal(mine[path], theirs[path])}
    assert {path for path in mine if path.startswith("mlpconv1/")} <= same
    assert "mlpconv2/conv2/kernel" not in same


def test_the_average_starts_from_the_same_weights(trained, tmp_path):
    folder, theirs = trained
    words = ["--config.optimizer.average=0.5", "--config.optimizer.learning_rate=0.0"]
    mine = train(tmp_path / "second", f"--config.init_from={folder}", *words)
    for path, value in theirs.items():
        np.testing.assert_allclose(mine[path], value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("where", "said"), [("nowhere", "nowhere"), (".", "config.json cannot be read")])
def test_a_directory_without_a_run_is_a_mistake(where, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        train(tmp_path / "second", f"--config.init_from={where}")


def test_a_network_that_has_nothing_in_common_is_a_mistake(trained, tmp_path):
    with pytest.raises(UserError, match="no parameter of that network fits"):
        train(
            tmp_path / "second",
            f"--config.init_from={trained[0]}",
            "--config.model.kernels=(5, 5)",
            widths="--config.model.widths=((14, 13), (16, 16))",
        )


def test_merge_goes_by_path_and_shape():
    new = {"params": {"a": {"kernel": np.zeros((2, 3))}, "b": {"bias": np.zeros(2)}, "c": {"bias": np.zeros(1)}}}
    old = {"params": {"a": {"kernel": np.ones((2, 3))}, "b": {"bias": np.ones(3)}, "d": {"bias": np.ones(1)}}}
    merged, kept, unused = merge(new | {"batch_stats": {}}, old | {"batch_stats": {}})
    assert np.all(merged["params"]["a"]["kernel"] == 1)
    assert np.all(merged["params"]["b"]["bias"] == 0)
    assert (kept, unused) == (["b/bias", "c/bias"], ["b/bias", "d/bias"])
    assert merged["batch_stats"] == {}


@pytest.fixture(scope="module")
def predictor(trained):
    return nin_jax.load_run(str(trained[0]))


def images(n=5, size=8):
    return np.random.default_rng(1).integers(0, 256, (n, size, size, 1), np.uint8)


@pytest.mark.parametrize("dtype", [np.int64, np.uint16, np.int16])
def test_whole_numbers_of_any_type_are_images(predictor, dtype):
    np.testing.assert_array_equal(predictor(images().astype(dtype))[0], predictor(images())[0])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            images() / np.float32(255),
            r"images of float32 \[5, 8, 8, 1\]: expected whole numbers from 0 to 255 \(uint8\)",
        ),
        (images().astype(float), "images of float64"),
        (images() > 127, "images of bool"),
        (images().astype(int) * 2, "from 0 to 5.. *: expected whole numbers from 0 to 255"),
        (images().astype(int) - 200, "from -200 to 55: expected"),
        (images().transpose(0, 3, 1, 2), r"\[5, 1, 8, 8\]: .* of shape \[B, 8, 8, 1\]; the channels come last"),
        (images()[..., 0], r"\[5, 8, 8\]: .* the channels come last, and one image is a batch of one"),
        (images()[0], r"\[8, 8, 1\]"),
        (np.repeat(images(), 3, -1), r"\[5, 8, 8, 3\]"),
        (images()[:0], "there is no image"),
        (images()[:, :0], "there is no image"),
        (["a.png", "b.png"], "images of <U5"),
        ([images()[0], images(size=9)[0]], r"images of several shapes: expected .* of shape \[B, 8, 8, 1\]"),
    ],
)
def test_what_is_no_image_of_this_network_is_refused(predictor, given, said):
    with pytest.raises(UserError, match=said) as caught:
        predictor(given)
    assert "\n" not in str(caught.value)


def test_images_from_0_to_1_are_said_to_be_almost_black(predictor, capsys):
    """Such as masks, or what was divided by 255, in a type of whole numbers: they may be meant."""
    for _ in range(2):
        predictor((images() > 127).astype(np.int32))
    assert capsys.readouterr().err == (
        "warning: images of int32 [5, 8, 8, 1] from 0 to 1, which is almost black: white is 255\n"
    )


def test_a_network_of_means_takes_other_sizes_and_says_so(predictor, capsys):
    """Logits are the means of the class maps, which far from the edges of an even image are the same at every size."""
    capsys.readouterr()
    middle = []
    for height, width in ((32, 24), (48, 64), (32, 24)):
        logits, maps = predictor(np.full((1, height, width, 1), 100, np.uint8))
        class_maps = maps["class_maps"]
        np.testing.assert_allclose(logits, class_maps.mean((1, 2)), rtol=1e-5, atol=1e-6)
        middle.append(class_maps[0, class_maps.shape[1] // 2, class_maps.shape[2] // 2])
    np.testing.assert_allclose(middle[1], middle[0], rtol=1e-5, atol=1e-6)
    said = [line for line in capsys.readouterr().err.splitlines() if "was trained on 8 x 8" in line]
    assert [line.split(":")[0] for line in said] == [f"images of uint8 [1, {s}, 1]" for s in ("32, 24", "48, 64")]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--config.preprocess=('gcn()',)"], {16: r"gcn\(\) is for images of this size"}),
        (
            ["--config.preprocess=(\"mean(per='pixel')\",)"],
            {16: "the network does not take this size", 1: "images of 1 x 1, and the mean is of 8 x 8"},
        ),
        (["--config.model.head=fc"], {16: "the network does not take this size"}),
    ],
)
def test_other_sizes_are_refused_where_something_depends_on_them(words, said, tmp_path):
    train(tmp_path / "run", *words)
    predictor = nin_jax.load_run(str(tmp_path / "run"))
    assert np.isfinite(predictor(images())[0]).all()
    for size, why in said.items():
        with pytest.raises(UserError, match=why):
            predictor(images(size=size))


def test_in_64_bit_mode_a_run_is_the_same(trained, predictor, tmp_path):
    """Training, loading and predicting; the mode itself stays on."""
    with jax.enable_x64(True):
        there = train(tmp_path / "second")
        again = nin_jax.load_run(str(trained[0]))
        logits, _ = again(images())
        assert jax.numpy.zeros(()).dtype == np.float64
    for path, value in trained[1].items():
        assert there[path].dtype == np.float32
        np.testing.assert_array_equal(there[path], value)
    np.testing.assert_array_equal(logits, predictor(images())[0])


@pytest.mark.parametrize(
    ("switch", "said"),
    [
        (jax.disable_jit(), r"JAX_DISABLE_JIT=1 \(jax_disable_jit\): updates and eval"),
        (jax.default_prng_impl("rbg"), r"JAX_DEFAULT_PRNG_IMPL=rbg \(jax_default_prng_impl\): the numbers of a seed"),
        (
            jax.threefry_partitionable(False),
            r"JAX_THREEFRY_PARTITIONABLE=0 \(jax_threefry_partitionable\): the numbers",
        ),
        (jax.transfer_guard("disallow"), r"JAX_TRANSFER_GUARD=disallow \(jax_transfer_guard\): data and results"),
    ],
    ids=["jit", "generator", "partitionable", "transfers"],
)
def test_a_switch_that_makes_another_run_is_refused_in_one_line(switch, said, tmp_path):
    with switch, pytest.raises(UserError, match=said):
        train(tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_loading_changes_nothing_in_the_process(trained, clean_env):
    """Hooks, signals, log levels, warnings and JAX's settings are a notebook's own."""
    code = f"""if True:
        import logging, signal, sys, warnings
        import jax, nin_jax
        import nin_jax.training.load

        def everything():
            signals = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
            levels = [logging.getLogger(name).level for name in ("", "absl", "asyncio", "jax")]
            return signals, levels, sys.unraisablehook, sys.excepthook, warnings.filters[:], dict(jax.config.values)

        before = everything()
        nin_jax.load_run({str(trained[0])!r})
        assert everything() == before
    """
    env = clean_env | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
