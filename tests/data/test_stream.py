"""Streamed pictures: which are decoded when, what is cut out of them, and a run that eats them."""

import dataclasses
import functools
import io
import json
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jax.sharding import AxisType
from PIL import Image

from nin_jax import config, registry
from nin_jax.data import encoded, memory, stream, views
from nin_jax.data.datasets import imagenet
from nin_jax.devices.mesh import AXIS, host, replicate
from nin_jax.devices.replicas import compile_replicas
from nin_jax.devices.signals import STOPPING
from nin_jax.errors import Preempted, UserError
from nin_jax.models.nin import Model
from nin_jax.training import evaluate, optim
from nin_jax.training import loop as train
from nin_jax.training.build import Run
from nin_jax.training.state import Recipe, init_state, init_variables
from nin_jax.training.step import predict, train_steps
from nin_jax.training.tasks import classify
from tests.data.datasets.test_folder import bomb
from tests.tiny import tiny

REAL = Path(os.environ.get("NIN_JAX_TFDS", Path(__file__).parents[3] / "shared" / "tfds"))
needs_real = pytest.mark.skipif(not (REAL / "imagenet2012").is_dir(), reason=f"no imagenet2012 in {REAL}")


@functools.cache
def jpeg(number: int, width: int = 0, height: int = 0) -> bytes:
    """A smooth picture with something of its own."""
    width, height = width or 28 + number % 5 * 4, height or 24 + number % 3 * 6
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (6, 7, 3), np.uint8))
    file = io.BytesIO()
    small.resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=95)
    return file.getvalue()


def pictures(number: int, classes: int = 10, **changes) -> encoded.Pictures:
    records = [{"image": jpeg(i), "label": i % classes, "file_name": b"a.JPEG"} for i in range(number)]
    return dataclasses.replace(encoded.Pictures("some train", records, classes, 20, 16), **changes)


def training(number: int = 23, batch_size: int = 8, rows=None, seed: int = 3) -> stream.Training:
    rows = np.arange(batch_size) if rows is None else np.asarray(rows)
    return stream.Training(pictures(number), seed, batch_size, rows, 100)


def mesh(n: int):
    return jax.make_mesh((n,), (AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:n])


# --- batches ---------------------------------------------------------------------------------------------------------


def test_an_epoch_has_each_picture_at_most_once_in_an_order_of_its_own():
    source = training()
    epochs = [[i for n in (0, 1) for i in source.indices(2 * epoch + n)] for epoch in range(50)]
    assert all(len(set(epoch)) == 16 and set(epoch) <= set(range(23)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 50
    assert {i for epoch in epochs for i in epoch} == set(range(23))
    assert epochs[1] != [i for n in (0, 1) for i in training(seed=4).indices(n)]  # seeds do not share epochs
    # Every picture is equally often in the first place: 23 expected 20 times in 460 epochs.
    counts = np.bincount([source.indices(2 * epoch)[0] for epoch in range(460)], minlength=23)
    assert ((counts - 20) ** 2 / 20).sum() < 60  # chi-square, 22 degrees of freedom, p < 1e-5


def test_a_batch_is_the_same_for_any_number_of_processes():
    whole = training()[5]
    parts = [training(rows=rows)[5] for rows in ([0, 1, 2], [3, 4], [5, 6, 7])]
    for i in range(2):
        np.testing.assert_array_equal(whole[i], np.concatenate([part[i] for part in parts]))
    assert not np.array_equal(whole.image, training()[6].image)


def test_worker_processes_hand_over_the_same_batches():
    """And the run goes on from any of them."""
    m, source = mesh(2), training()
    ahead = [stream.Ahead(source, first, m, workers) for first, workers in ((3, 2), (5, 0))]
    try:
        for number in (3, 4, 5, 6):
            batch = host(ahead[0].take())
            wanted = [source[number]] + ([host(ahead[1].take())] if number >= 5 else [])
            for other in wanted:
                np.testing.assert_array_equal(batch.image, np.reshape(other.image, batch.image.shape))
                np.testing.assert_array_equal(batch.label, np.reshape(other.label, batch.label.shape))
        os.kill(next(c.pid for c in multiprocessing.active_children() if c.pid), signal.SIGKILL)
        with pytest.raises(UserError, match=r"was killed; if memory ran out, set --config\.workers to less than 2"):
            list(iter(ahead[0].take, None))
    finally:
        for a in ahead:
            a.close()


@pytest.mark.parametrize(("width", "height"), [(500, 375), (333, 500), (37, 21), (16, 20), (20, 33), (700, 333)])
def test_a_window_is_that_of_the_whole_scaled_picture(width, height):
    """Pillow's own, scaled whole and cut after; and where libjpeg has not made it smaller, decoded by Pillow."""
    picture = dataclasses.replace(pictures(1), records=[{"image": jpeg(1, width, height), "label": 0}])
    decoded, to, _ = picture.decode(0)
    assert isinstance(decoded, np.ndarray) == (width == 20)
    pillows = Image.open(io.BytesIO(jpeg(1, width, height))) if width < 80 else decoded
    whole = np.asarray(pillows.resize(to[::-1], Image.Resampling.BILINEAR), int)
    for y, x, h, w in [(0, 0, 16, 16), (to[0] - 16, to[1] - 16, 16, 16), (0, 0, *to)]:
        assert np.abs(encoded.cut(decoded, to, (y, x, h, w)).astype(int) - whole[y : y + h, x : x + w]).max() <= 1


def test_a_large_jpeg_is_decoded_small_and_looks_the_same():
    large = dataclasses.replace(pictures(1), records=[{"image": jpeg(1, 640, 480), "label": 0}])
    decoded, to, _ = large.decode(0)
    assert decoded.size == (80, 60)  # an eighth; more than twice 27 x 20
    exact = Image.open(io.BytesIO(jpeg(1, 640, 480))).resize(to[::-1], Image.Resampling.BILINEAR)
    assert np.abs(encoded.cut(decoded, to, (0, 0, *to)).astype(int) - np.asarray(exact, int)).mean() < 1


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # as nin_jax does
@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"image": b"no picture", "label": 0}, "record 2 of some train cannot be read: cannot identify image file"),
        (
            {"image": jpeg(1, 500, 375)[:2000], "label": 0},
            "record 2 of some train cannot be decoded: image file is truncated",
        ),
        (
            {"image": jpeg(1, 40, 30)[:-200], "label": 0},
            "record 2 of some train cannot be decoded: image file is truncated",
        ),
        ({"image": bomb(16_000, 10_000), "label": 0}, "16000 x 10000 pixels are more than 150000000"),
        ({"image": jpeg(1), "label": 10}, "record 2 of some train: label 10 is not between 0 and 9"),
    ],
)
def test_a_bad_record_stops_with_its_name(record, said):
    bad = pictures(4)
    bad.records[2] = record  # pyright: ignore[reportIndexIssue]
    ahead = stream.Ahead(stream.Training(bad, 0, 4, np.arange(4), 3), 0, mesh(1), 0)
    with pytest.raises(UserError, match=said):
        ahead.take()
    ahead.close()


def test_bad_records_are_left_out_where_that_is_wanted(capsys):
    """In training the next one takes the place, in evaluation nothing does; each is named."""
    bad, good = pictures(6, skip=True), pictures(6)
    bad.records[2] = {"image": b"no picture", "label": 0}  # pyright: ignore[reportIndexIssue]
    source, sound = (stream.Training(p, 0, 6, np.arange(6), 3) for p in (bad, good))
    place = source.indices(0).index(2)
    assert sound.indices(0)[place] == 2
    assert source[0].label.tolist() == [3 if i == 2 else i for i in source.indices(0)]
    source[0]
    assert capsys.readouterr().err.count("record 2 of some train cannot be read") == 1
    for protocol in ("center", "dense"):
        batches = list(stream.EvalStream(bad, mesh(1), 4, protocol, 0))
        labels = [np.asarray(b.label)[np.asarray(b.weight) > 0] for b in batches]
        assert sorted(np.concatenate(labels).tolist()) == [0, 1, 3, 4, 5]
    nothing = pictures(2, skip=True)
    nothing.records[:] = [{"image": b"", "label": 0}] * 2  # pyright: ignore[reportIndexIssue]
    with pytest.raises(UserError, match="no record of some train can be used"):
        nothing.usable_from(1)


# --- evaluation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", views.NAMES)
@pytest.mark.parametrize("devices", [1, 4])
def test_every_picture_is_planned_once(protocol, devices):
    groups = stream.plan(pictures(23), protocol, 8, devices)
    assert sorted(i for g in groups for i in g.rows if i >= 0) == list(range(23))
    assert all(len(g.rows) % devices == 0 for g in groups)
    inputs = max(len(g.rows) * g.windows * g.height * g.width for g in groups)
    assert inputs <= max(8, devices * 20) * 16 * 16


def recipe(seed: int = 0) -> Recipe:
    c = config.experiment("digits")
    with c.unlocked():
        c.optimizer.learning_rate_factors = ()  # of layers that this network has not
    c = config.check(c)
    model = Model(10, kernels=(3, 3), widths=((8, 6), (8,)), pools=("max",), deviations=("he",))
    preprocess = registry.calls("preprocess", ("scale(divisor=255)",))
    augment = registry.calls("augment", ("flip()",))
    return Recipe(model, classify, classify.objective, preprocess, augment, 8, optim.optimizer(c, 2))


STATS = [{"divisor": np.full(3, 255, np.float32)}]


@pytest.mark.parametrize(
    ("protocol", "devices", "mapper"),
    [
        ("center", 2, "pmap"),
        ("mirror", 1, "pmap"),
        ("10-crop", 2, "shard_map"),
        ("3-view", 1, "pmap"),
        ("dense", 2, "pmap"),
    ],
)
def test_an_evaluation_averages_the_softmax_of_all_views_of_two_networks(protocol, devices, mapper):
    """Against NumPy and SciPy, one picture at a time."""
    split, m, r = pictures(11), mesh(devices), recipe()
    networks = [init_variables(r.model, seed, (16, 16, 3)) for seed in (0, 1)]
    source = stream.EvalStream(split, m, 8, protocol, 0)
    evaluator = evaluate.Evaluator([r, r], m, mapper, source, [replicate(STATS, m)] * 2)
    got = evaluator(replicate(networks, m))
    logits_of = jax.jit(functools.partial(predict, r))
    losses, wrong = [], []
    for i in range(11):
        decoded, to, label = split.decode(i)
        seen = [encoded.cut(decoded, to, w) for w in views.windows(protocol, *to, 16)]
        seen += [v[:, ::-1] for v in seen] if protocol in ("mirror", "10-crop") else []
        logits = np.concatenate([logits_of(n, STATS, np.stack(seen))[0] for n in networks])
        mean = scipy.special.softmax(logits.astype(np.float64), axis=1).mean(0)
        losses.append(-np.log(mean[label]))
        wrong.append(mean.argmax() != label)
    assert got == pytest.approx({"loss": np.mean(losses), "error_pct": 100 * np.mean(wrong), "examples": 11}, rel=1e-5)


# --- a run -----------------------------------------------------------------------------------------------------------

STREAMED = {
    "dataset": "imagenet(size=16, short=20)",
    "train_split": "train",
    "eval_split": "validation",
    "preprocess": ("mean(per='channel')", "scale(divisor=60.0)"),
    "augment": ("flip()",),
    "batch_size": 8,
    "epochs": 2,
    "workers": 0,
    "schedule.boundaries_epochs": (),
}


def small(**changes):
    return tiny(**STREAMED | changes)


@pytest.fixture
def made_up(monkeypatch):
    """ImageNet is 32 and 11 small pictures of 100 classes."""
    monkeypatch.setattr(imagenet, "INFO", imagenet.INFO._replace(classes=100))
    numbers = {"train": 32, "validation": 11}
    monkeypatch.setattr(imagenet, "tfds_records", lambda facts, split, data_dir: pictures(numbers[split], 100).records)
    monkeypatch.setattr("nin_jax.training.build.make_mesh", lambda: mesh(1))


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize(("size", "batches"), [(0, 2), (4, 3), (16, 1)])
def test_an_evaluation_has_batches_of_its_own_size(size, batches):
    """Of 11 pictures; 0: as large as an update's, 8."""
    run = Run(small(eval_batch_size=size))
    assert run.evaluation(run.load("validation")).batches == batches


def rows(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "images_per_s"} for line in lines]


def newest(workdir):
    steps = sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    notes = json.loads((workdir / "checkpoints" / str(steps[-1]) / "notes.json").read_text())
    return json.loads(notes["content"])["arrays"]


def test_a_run_that_is_stopped_inside_an_epoch_goes_on_with_the_next_example(made_up, tmp_path, monkeypatch, capsys):
    """Parameters, momentum and rows are bit for bit those of a run that was left alone; so is --mode=eval."""
    train.train(small(), tmp_path / "whole")
    seen, real = [], stream.Training.indices

    def indices(self, number):
        seen.append(number)
        return real(self, number)

    taken = []
    at = stream.TrainStream.at

    def stopping(self, number):
        taken.append(number)
        if number == 2 and len(taken) == 3:
            signal.raise_signal(signal.SIGTERM)
        return at(self, number)

    monkeypatch.setattr(stream.Training, "indices", indices)
    monkeypatch.setattr(stream.TrainStream, "at", stopping)
    with pytest.raises(Preempted, match="saved step 3 of 8"):
        train.train(small(), tmp_path / "stopped")
    del seen[:]
    train.train(small(), tmp_path / "stopped")
    assert taken == list(range(8))
    assert sorted(set(seen)) == list(range(3, 8))  # nothing is decoded again
    assert rows(tmp_path / "stopped") == rows(tmp_path / "whole")
    assert newest(tmp_path / "stopped") == newest(tmp_path / "whole")

    last = rows(tmp_path / "whole")[-1]
    assert last["split"] == "validation"
    assert last["top5_error_pct"] <= last["error_pct"]
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert summary["test_top5_error_pct"] == last["top5_error_pct"]
    capsys.readouterr()
    evaluate.evaluate_run(small(), tmp_path / "whole")
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {k: line[k] for k in ("error_pct", "top5_error_pct", "loss")} == {
        k: last[k] for k in ("error_pct", "top5_error_pct", "loss")
    }
    assert (line["examples"], line["views"]) == (11, "center")

    # The same network three times is as good as once.
    evaluate.evaluate_run(small(**{"eval.views": "3-view"}), tmp_path / "whole")
    once = json.loads(capsys.readouterr().out.splitlines()[-1])
    evaluate.evaluate_run(small(**{"eval.views": "3-view"}), tmp_path / "none", [tmp_path / "whole"] * 3)
    thrice = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert thrice["step"] == [8, 8, 8]
    assert thrice == once | {k: pytest.approx(once[k], rel=1e-5) for k in thrice if k.endswith(("loss", "pct"))} | {
        "step": thrice["step"]
    }


@pytest.mark.parametrize(("devices", "mapper"), [(4, "pmap"), (4, "shard_map"), (1, "shard_map")])
def test_an_update_is_the_same_on_any_number_of_devices(devices, mapper):
    """As on one device under pmap."""

    def after_two(n: int, mapper: str):
        m, r = mesh(n), recipe()
        source = stream.TrainStream(pictures(23), m, 8, 3, 5, 0)
        state = replicate(init_state(r, 0, (16, 16, 3)), m)
        rest = replicate((STATS, jnp.uint32(3), jnp.int32(1)), m)
        split = False, source.split, False, False, False
        update = compile_replicas(train_steps(r, source.draw), (state, source.like, *rest), m, mapper, split=split)
        for number in range(2):
            state, metrics = update(state, source.at(number), *rest)
        source.close()
        return host((state.params, metrics))

    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
        after_two(devices, mapper),
        after_two(1, "pmap"),
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"eval.views": "10-crops"}, "eval.views='10-crops': did you mean '10-crop'"),
        (
            {"dataset": "synthetic", "eval.views": "dense"},
            "have the network's own size and are seen whole; use 'center'",
        ),
        ({"dataset": "imagenet(size=300)"}, r"imagenet\(size=300, short=256\): 1 <= size <= short"),
        (
            {"eval.views": "dense", "model.head": "fc"},
            "'dense' needs a network that ends in global average pooling; model nin",
        ),
        ({"workers": -2}, "workers=-2"),
    ],
)
def test_mistakes(made_up, changes, said):
    from nin_jax.training.build import Run

    with pytest.raises(UserError, match=said):
        Run(small(**changes))


def test_without_the_data_one_line_says_what_to_run(tmp_path):
    with pytest.raises(UserError, match=r"run `python -m nin_jax.data.prepare imagenet2012 --archives=FOLDER"):
        imagenet.load("train", str(tmp_path))


@needs_real
def test_the_real_pictures():
    """Sixty of them, with labels, across parts of splits."""
    split = imagenet.load("train[10:20]+validation[-5:]", str(REAL), size=32, short=40)
    assert len(split) == 15
    every = imagenet.load("validation", str(REAL), size=32, short=40)
    assert [split.open(i)[3] for i in range(10, 15)] == [every.open(i)[3] for i in range(15, 20)]
    batch = stream.Training(split, 0, 15, np.arange(15), 1)[0]
    assert batch.image.shape == (15, 32, 32, 3)
    assert batch.image.std(axis=(1, 2, 3)).min() > 10
    assert isinstance(batch, memory.Batch)


@needs_real
@pytest.mark.slow
def test_nin_imagenet_learns_forty_photographs_by_heart(tmp_path, clean_env):
    """The whole way by the commands of a user; evaluation by each protocol sees every picture."""
    small = (
        "mlpconv(maps=(48, 48), size=11, stride=4, pad=0)",
        "max_pool(size=3, stride=2)",
        "mlpconv(maps=(96, 96), size=5)",
        "max_pool(size=3, stride=2)",
        "mlpconv(maps=(192, 192), size=3)",
    )
    command = [sys.executable, "-m", "nin_jax.main", "--config=imagenet_overfit", f"--config.data_dir={REAL}"]
    command += [f"--workdir={tmp_path / 'run'}", f"--config.model.layers={small}"]
    command += ["--config.dataset=imagenet(size=64, short=72)", "--config.eval_every_epochs=90"]
    subprocess.run(command, check=True, env=clean_env)
    lines = {}
    for protocol in views.NAMES:
        words = ["--mode=eval", f"--config.eval.views={protocol}", "--config.eval_split=train"]
        done = subprocess.run([*command, *words], check=True, env=clean_env, stdout=subprocess.PIPE, text=True)
        lines[protocol] = json.loads(done.stdout.splitlines()[-1])
    assert {line["examples"] for line in lines.values()} == {40}
    assert lines["center"]["error_pct"] == 0
    assert lines["center"]["top5_error_pct"] == 0


ENDLESS = """
import os, signal, sys
import jax
from jax.sharding import AxisType
from nin_jax.data import stream
from nin_jax.data.datasets import imagenet
from nin_jax.devices.signals import STOPPING
if __name__ == "__main__":
    for number in STOPPING:
        signal.signal(number, lambda *_: None)
    print("signals are handled", flush=True)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    source = stream.TrainStream(imagenet.load("train", sys.argv[1], size=32, short=40), mesh, 8, 0, 100, 2)
    for step in range(6):
        source.at(step)
    print("batches come", flush=True)
    sys.stdin.read()
"""


def decoding(process: subprocess.Popen) -> set[str]:
    """The processes that it has started to decode."""
    children = " ".join(f.read_text() for f in Path(f"/proc/{process.pid}/task").glob("*/children")).split()
    return {c for c in children if "spawn_main" in Path(f"/proc/{c}/cmdline").read_text()}


@needs_real
@pytest.mark.slow
def test_processes_that_decode_leave_signals_to_the_run_and_do_not_outlive_it(tmp_path, clean_env):
    """A terminal that closes, Ctrl-C and Slurm send a signal to all processes of a run, at any moment of their lives."""
    (tmp_path / "endless.py").write_text(ENDLESS)
    command = [sys.executable, str(tmp_path / "endless.py"), str(REAL)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": clean_env}
    process = subprocess.Popen(command, start_new_session=True, **pipes)
    assert process.stdout is not None
    assert process.stdout.readline() == "signals are handled\n"
    workers: set[str] = set()
    while not select.select([process.stdout], [], [], 0.02)[0]:
        for number in STOPPING:
            os.killpg(process.pid, number)
        workers |= decoding(process)
    assert process.stdout.readline() == "batches come\n"
    for number in STOPPING:
        os.killpg(process.pid, number)
    time.sleep(1)
    assert len(workers) == 2
    assert decoding(process) == workers
    process.kill()
    process.communicate()
    patience = time.monotonic() + 300
    while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < patience:
        time.sleep(0.2)
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
