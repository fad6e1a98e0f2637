"""The loop under faults that are caused: signals in every phase, kill -9, broken checkpoints, dead and exploding nets."""

import csv
import json
import math
import re
import shutil
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
import scipy.special

import nin_jax
from nin_jax import config, storage
from nin_jax.data import memory
from nin_jax.devices.mesh import host, make_mesh, replicated_like
from nin_jax.devices.signals import STOPPING
from nin_jax.errors import Diverged, Preempted, StorageFailed
from nin_jax.runs import checkpoint
from nin_jax.runs.record import Record
from nin_jax.training import evaluate, programs
from nin_jax.training.build import Run
from nin_jax.training.loop import Event, train
from tests.terminal import terminal
from tests.tiny import tiny

pytestmark = pytest.mark.usefixtures("one_device", "fused")


def rows(workdir):
    """metrics.jsonl without its timings."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "images_per_s"} for line in lines]


def final_state(workdir):
    """CRC-32 of every array of the newest checkpoint, as saved, and its step."""
    steps = sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    notes = json.loads((workdir / "checkpoints" / str(steps[-1]) / "notes.json").read_text())
    return steps[-1], json.loads(notes["content"])["arrays"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run that nothing happened to."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    train(tiny(), workdir)
    return workdir


def signal_at(*moments, number=signal.SIGTERM):
    """A hook that sends a signal at each (event, n): the n-th time that the event comes."""
    came = Counter()

    def hook(event, step):
        came[event] += 1
        if (event, came[event]) in moments:
            signal.raise_signal(number)  # not by the process: that one comes when another thread has passed it on

    return hook


def preempted(workdir, *moments, config=None):
    """A run that SIGTERM stops, in its third epoch if nothing else is said; the step that it saved."""
    with pytest.raises(Preempted, match="SIGTERM: saved step") as stopped:
        train(config or tiny(), workdir, signal_at(*(moments or [(Event.AFTER_UPDATES, 23)])))
    step, _ = final_state(workdir)
    assert f"saved step {step} of" in str(stopped.value)
    return step


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory):
    """A run stopped in its third epoch, with checkpoints of steps 10, 20 and then."""
    workdir = tmp_path_factory.mktemp("stopped") / "run"
    return workdir, preempted(workdir)


@pytest.fixture
def stopped(stopped_once, tmp_path):
    """A copy of it, and the step that it saved."""
    workdir, step = stopped_once
    return shutil.copytree(workdir, tmp_path / "run"), step


def same_run(workdir, undisturbed):
    """Parameters, momentum and rows bit for bit those of the undisturbed run."""
    assert final_state(workdir) == final_state(undisturbed)
    assert rows(workdir) == rows(undisturbed)


def test_the_record_of_a_run(undisturbed):
    """Each epoch has one row of training and one of the test, in order; the summary keeps the contract."""
    assert [(r["step"], r["split"]) for r in rows(undisturbed)] == [
        (s, split) for s in (10, 20, 30) for split in ("train", "test")
    ]
    assert [r["learning_rate"] for r in rows(undisturbed)[::2]] == pytest.approx([0.05, 0.05, 0.005])
    summary = json.loads((undisturbed / "summary.json").read_text())
    assert summary["status"] == "done"
    assert (summary["step"], summary["epochs"], summary["test_examples"]) == (30, 3, 72)
    assert summary["test_error_pct"] == rows(undisturbed)[-1]["error_pct"]
    wanted = "status step epochs params test_error_pct test_examples train_seconds compile_seconds images_per_s device "
    assert set((wanted + "devices seed versions commit").split()) <= summary.keys()
    assert config.to_dict(tiny()) == json.loads((undisturbed / "config.json").read_text())
    assert list((undisturbed / "tensorboard").glob("events*"))


def test_a_done_run_is_not_touched(undisturbed):
    """Starting it again changes no file."""
    before = {
        p: p.stat().st_mtime_ns
        for p in undisturbed.rglob("*")
        if p.is_file() and p.name not in (".lock", "config.json")
    }
    train(tiny(), undisturbed)
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_mirror_images_vote_too(undisturbed, capsys):
    """The loss is that of the mean softmax of each image and its mirror image, against SciPy."""
    evaluate.evaluate_run(tiny(**{"eval.views": "mirror"}), undisturbed)
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    c, predictor = tiny(), nin_jax.load_run(undisturbed)
    images, labels = c.dataset.entry.load(c.eval_split, None, **c.dataset.arguments)
    both = np.stack([predictor(views)[0] for views in (images, images[:, :, ::-1])]).astype(np.float64)
    mean = scipy.special.softmax(both, axis=-1).mean(0)
    assert (line["views"], line["examples"]) == ("mirror", 72)
    assert line["loss"] == pytest.approx(-np.log(mean[np.arange(72), labels]).mean(), rel=1e-5)
    assert line["error_pct"] == pytest.approx(100 * (mean.argmax(1) != labels).mean())


def test_evaluation_agrees_with_the_loop_and_changes_nothing(undisturbed, capsys):
    """--mode=eval prints the numbers that the loop logged, as JSON, last; and writes nothing."""
    before = {p: p.stat().st_mtime_ns for p in undisturbed.rglob("*")}
    evaluate.evaluate_run(tiny(), undisturbed)
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    logged = rows(undisturbed)[-1]
    assert line == {"split": "test[:72]", "views": "center", "examples": 72, "step": 30} | {
        k: logged[k] for k in ("loss", "error_pct")
    }
    assert before == {p: p.stat().st_mtime_ns for p in undisturbed.rglob("*")}


def send_signal(monkeypatch, owner, name, call, number=signal.SIGTERM):
    """Makes the given call of a real function also send a signal to this process."""
    real, calls = getattr(owner, name), iter(range(1, 1000))

    def function(*args, **kwargs):
        if next(calls) == call:
            signal.raise_signal(number)
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, function)


@pytest.mark.parametrize(
    ("event", "call", "saved"),
    [
        (Event.AFTER_UPDATES, 13, range(11, 20)),
        pytest.param(Event.BEFORE_ROW, 2, [20], marks=pytest.mark.slow),
        (Event.BEFORE_EVALUATION, 2, [20]),
        pytest.param(Event.BEFORE_SAVE, 1, [10], marks=pytest.mark.slow),
    ],
)
def test_a_signal_in_any_phase(event, call, saved, tmp_path, undisturbed):
    """It ends with `Preempted` (exit 75) and a checkpoint of the present step; what is started again is the same run."""
    workdir = tmp_path / "run"
    assert preempted(workdir, (event, call)) in saved
    train(tiny(), workdir)
    same_run(workdir, undisturbed)


def test_a_run_in_another_thread(tmp_path):
    """As a notebook or a server may train: its signals stay its own."""
    before = [signal.getsignal(number) for number in STOPPING]
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(train, tiny(), tmp_path / "run").result()["status"] == "done"
    assert [signal.getsignal(number) for number in STOPPING] == before


def test_a_signal_while_programs_compile(tmp_path, monkeypatch, undisturbed):
    """Nothing is saved, and the directory belongs to nobody: another config may have it."""
    workdir = tmp_path / "run"
    with monkeypatch.context() as patch:
        send_signal(patch, programs, "compile_replicas", 1)
        with pytest.raises(Preempted, match="SIGTERM before the first update: nothing to save; start again"):
            train(tiny(eval_split="test[:40]"), workdir)
    train(tiny(), workdir)
    same_run(workdir, undisturbed)


def test_a_signal_after_the_last_update(tmp_path, monkeypatch, undisturbed):
    """Nothing is left to preempt: the run ends well."""
    send_signal(monkeypatch, checkpoint.Checkpoints, "close", 1)
    train(tiny(), tmp_path / "run")
    same_run(tmp_path / "run", undisturbed)


@pytest.mark.parametrize(
    ("patched", "number"),
    [pytest.param("kinds", signal.SIGINT, marks=pytest.mark.slow), ("checksums", signal.SIGTERM)],
)
def test_a_signal_while_a_checkpoint_is_restored(patched, number, stopped, monkeypatch, undisturbed, capsys):
    """It waits for the restore, or for the check of what was restored, so that the checkpoint is not taken for a broken one."""
    workdir, step = stopped
    with monkeypatch.context() as patch:
        send_signal(patch, checkpoint, patched, 1, number)
        with pytest.raises(Preempted, match=f"saved step {step} "):
            train(tiny(), workdir)
    assert "is broken" not in capsys.readouterr().err
    train(tiny(), workdir)
    same_run(workdir, undisturbed)


def test_a_signal_before_the_first_update_has_nothing_to_save(tmp_path, monkeypatch):
    """While data is read, the command ends at once."""
    send_signal(monkeypatch, Run, "load", 1)
    with pytest.raises(Preempted, match="nothing to save"):
        train(tiny(), tmp_path / "run")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_ctrl_c_once_and_twice(tmp_path, undisturbed):
    """SIGINT saves like SIGTERM; a second one does not wait for the save, and the run resumes from the checkpoint before."""
    workdir = tmp_path / "run"
    twice = signal_at((Event.AFTER_UPDATES, 15), (Event.BEFORE_SAVE, 2), number=signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), workdir, twice)
    assert final_state(workdir)[0] == 10
    train(tiny(), workdir)
    same_run(workdir, undisturbed)


@pytest.mark.slow
def test_a_run_whose_rate_and_momentum_change_goes_on_where_it_was(tmp_path):
    """Stopped in the middle of an epoch, twice. The rows show the rate in force: a tenth after an epoch without progress."""
    changes = {
        "epochs": 6,
        "seed": 1,  # with which some epochs make progress and some do not
        "model.dropout": 0.5,
        "optimizer.momentum": 0.5,
        "optimizer.momentum_epochs": 4.5,
        "optimizer.max_norms": ("conv./kernel=0.9",),
        "schedule.boundaries_epochs": (),
        "schedule.decay": "linear",
        "schedule.final_epochs": 12.0,
        "schedule.plateau_epochs": 1,
    }
    calm, workdir = tmp_path / "calm", tmp_path / "run"
    train(tiny(**changes), calm)
    for call in (23, 20):
        assert preempted(workdir, (Event.AFTER_UPDATES, call), config=tiny(**changes)) % 10
    train(tiny(**changes), workdir)
    same_run(workdir, calm)
    best, drops, expected = math.inf, 0, []
    trained = rows(calm)[::2]
    for row in trained:  # the last update of epoch e is number 10 e - 1; 120 of them would take the rate to 1 %
        expected.append(0.05 * (1 - 0.99 * (row["step"] - 1) / 120) * 0.1 ** min(drops, 2))
        best, drops = min(best, row["error_pct"]), drops + (row["error_pct"] >= best)
    assert [row["learning_rate"] for row in trained] == pytest.approx(expected)
    assert 0 < drops < 5


def test_a_run_with_four_updates_a_dispatch(tmp_path, monkeypatch, undisturbed):
    """Killed, and stopped in mid-epoch, it ends as the run of one update a dispatch does, bit for bit.

    From the first metrics on nothing goes to the devices but by explicit transfers.
    """
    monkeypatch.setattr(memory, "steps_per_dispatch", lambda: 4)
    workdir, guard = tmp_path / "run", "jax_transfer_guard_host_to_device"

    class Killed(BaseException):
        pass

    def killed(event, step):
        jax.config.update(guard, "disallow")
        if event == Event.AFTER_UPDATES and step > 10:
            raise Killed

    try:
        with pytest.raises(Killed):
            train(tiny(), workdir, killed)
    finally:
        jax.config.update(guard, "allow")
    assert final_state(workdir)[0] == 10
    assert preempted(workdir, (Event.AFTER_UPDATES, 1)) == 18  # 14 had been read while the next four were made
    train(tiny(), workdir)
    same_run(workdir, undisturbed)


def truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file):
    file.write_bytes(b"")


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def remove(file):
    file.unlink()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # orbax's reads that come back late
@pytest.mark.parametrize(
    ("what", "harm"),
    [
        ("arrays", flip_a_bit),
        ("notes", remove),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                *(("arrays", harm) for harm in (truncate, empty, remove)),
                ("manifest", truncate),
                ("notes", flip_a_bit),
            ]
        ),
    ],
)
def test_a_broken_newest_checkpoint(harm, what, stopped, undisturbed, capsys):
    """The one before is used, a line says so, the broken one is set aside, and the run ends as if nothing had been."""
    workdir, step = stopped
    folder = workdir / "checkpoints" / str(step)
    if what == "arrays":  # the chunks with the parameters, in several files, of which some are left over and never read
        files = [p for p in folder.rglob("*") if p.is_file() and p.parent.name == "d"]
    else:
        files = [folder / ("state/manifest.ocdbt" if what == "manifest" else "notes.json")]
    for file in files:
        harm(file)
    capsys.readouterr()
    train(tiny(), workdir)
    said = [line for line in capsys.readouterr().err.splitlines() if "is broken" in line]
    assert len(said) == 1
    assert f"checkpoints/{step} is broken" in said[0]
    assert "going back to step 20" in said[0]
    assert (workdir / "checkpoints" / f"broken-{step}").is_dir()
    same_run(workdir, undisturbed)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # orbax's reads that come back late
def test_no_harm_to_any_file_is_silent(tmp_path, capsys):
    """Whatever is done to a file of the newest step, what comes back is that step's state, or the one before with a line.

    Orbax alone restores a flipped bit in array data without a word, and this counts that it is caught.
    """
    numbers = np.random.default_rng(0)
    states = {step: {"w": numbers.normal(size=(64, 100)).astype(np.float32), "step": np.int32(step)} for step in (1, 2)}
    original = tmp_path / "original"
    checkpoints = checkpoint.Checkpoints(original, keep=2)
    for step, state in states.items():
        checkpoints.save(step, jax.tree.map(jax.numpy.asarray, state), {})
    checkpoints.close()
    newest = original / "checkpoints" / "2"
    like = replicated_like(states[1], make_mesh())
    stepped_back = {}
    for file in [f.relative_to(newest) for f in newest.rglob("*") if f.is_file()]:
        for harm in (truncate, empty, flip_a_bit, remove):
            copy = tmp_path / "copy"
            shutil.copytree(original, copy)
            harm(copy / "checkpoints" / "2" / file)
            checkpoints = checkpoint.Checkpoints(copy, keep=2)
            capsys.readouterr()
            found = checkpoints.restore(like)
            checkpoints.close()
            assert found is not None
            step, state, _ = found
            assert jax.tree.all(jax.tree.map(np.array_equal, host(state), states[step])), (file, harm)
            assert (step == 1) == ("checkpoints/2 is broken" in capsys.readouterr().err)
            stepped_back[file, harm] = step == 1
            shutil.rmtree(copy)
    data = max((f for f in newest.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size).relative_to(newest)
    assert all(stepped_back[data, harm] for harm in (truncate, empty, flip_a_bit, remove))


def test_notes_are_those_of_the_moment_of_the_save(tmp_path):
    """Orbax writes them later, in a thread; the loop goes on counting in the same dict."""
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=9)
    state = {"w": jax.numpy.arange(3.0)}
    for step in range(1, 6):
        notes = {"meter": {"updates": step}}
        checkpoints.save(step, state, notes)
        notes["meter"]["updates"] = -1
    checkpoints.wait()
    found = checkpoints.restore(replicated_like(state, make_mesh()))
    checkpoints.close()
    assert found is not None
    assert (found[0], found[2]) == (5, {"meter": {"updates": 5}})


def test_a_machine_without_memory_breaks_no_checkpoint(tmp_path, monkeypatch):
    """Running out of memory says nothing about the file: the error goes up, and no checkpoint is set aside."""
    checkpoints = checkpoint.Checkpoints(tmp_path)
    state = {"w": jax.numpy.arange(3.0)}
    checkpoints.save(1, state, {})
    checkpoints.wait()

    def full(_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.")

    monkeypatch.setattr(checkpoint, "checksums", full)
    with pytest.raises(jax.errors.JaxRuntimeError):
        checkpoints.restore(replicated_like(state, make_mesh()))
    checkpoints.close()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["1"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # orbax's reads that come back late
def test_every_checkpoint_broken(stopped, undisturbed, capsys):
    """The run starts again at step 0 and says so; the same numbers come out."""
    workdir, _ = stopped
    for file in (workdir / "checkpoints").rglob("manifest.ocdbt"):
        empty(file)
    train(tiny(), workdir)
    assert "starting at step 0" in capsys.readouterr().err
    same_run(workdir, undisturbed)


def test_an_empty_step_directory_is_no_checkpoint(stopped, undisturbed):
    """Orbax takes an empty directory 27/ for the newest checkpoint; here it is stepped over."""
    workdir, _ = stopped
    (workdir / "checkpoints" / "27").mkdir()
    train(tiny(), workdir)
    same_run(workdir, undisturbed)


def test_half_a_last_row_and_a_broken_preprocessing_file(stopped, undisturbed):
    """metrics.jsonl with half a last line is mended; preprocess.npz with a flipped bit is fitted again."""
    workdir, _ = stopped
    with open(workdir / "metrics.jsonl", "a") as f:
        f.write('{"step": 30, "spl')
    flip_a_bit(workdir / "preprocess.npz")
    train(tiny(), workdir)
    same_run(workdir, undisturbed)


def test_latest_and_best_are_kept(tmp_path):
    """keep=1 leaves the newest and the one with the lowest test error; NaN is never the best."""
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=1)
    state = {"w": jax.numpy.arange(3.0)}
    for step, error in enumerate([50.0, 20.0, 30.0, float("nan"), 40.0], 1):
        checkpoints.save(step, state, {}, {"error_pct": error})
    checkpoints.save(6, state, {})
    checkpoints.close()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "6"]


@pytest.mark.slow
def test_a_full_disk_ends_with_storage_failed(tmp_path, monkeypatch):
    """An error of the file system while a checkpoint is written is exit 74, and the checkpoints before are good."""
    workdir = tmp_path / "run"
    real, saves = checkpoint.ocp.Checkpointer.save, []

    def save(*args, **kwargs):
        saves.append(args)
        if len(saves) > 1:
            raise OSError(28, "No space left on device")
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.ocp.Checkpointer, "save", save)
        patch.setattr(storage, "RETRY_AFTER", (0.0,) * len(storage.RETRY_AFTER))
        with pytest.raises(StorageFailed, match="No space left"):
            train(tiny(), workdir)
    assert final_state(workdir)[0] == 10


def test_a_dead_network_is_noticed(tmp_path):
    """All weights 0, so all class maps are 0 for ever: exit 70, a summary, a line that helps; after a resume as without."""
    dead = tiny(**{"model.deviations": (0.0,), "epochs": 9})
    preempted(tmp_path / "run", (Event.AFTER_UPDATES, 33), config=dead)
    with pytest.raises(Diverged, match=r"dead at update 50: .*ln 10.*class_map_bias"):
        train(dead, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "diverged"


@pytest.mark.slow
def test_a_network_learns(tmp_path):
    """On the made-up pictures, far below chance (90 %)."""
    recipe = {
        "train_split": "train",
        "eval_split": "test",
        "epochs": 5,
        "preprocess": ("mean()", "scale()"),
        "augment": (),
        "model.widths": ((16, 16), (16,)),
        "model.dropout": 0.0,
        "model.relu_on_class_maps": False,
        "optimizer.clip_norm": 1.0,
        "schedule.boundaries_epochs": (4,),
    }
    assert train(tiny(**recipe), tmp_path / "run")["test_error_pct"] < 20


def test_an_exploding_network_is_noticed(tmp_path):
    """A loss that is not finite is exit 70, with the update named."""
    with pytest.raises(Diverged, match=r"loss is (nan|inf) at update \d+"):
        train(tiny(**{"optimizer.learning_rate": 1e20}), tmp_path / "run")


def test_eval_every_and_validation_rows(tmp_path):
    """Evaluation every second epoch and at the end; a part of "train" is called validation; a batch of 50 is padded.

    On a terminal: a row for each epoch, and one bar that counts the whole run and always knows the time left.
    """
    changes = {
        "eval_every_epochs": 2,
        "eval_split": "train[320:392]",
        "batch_size": 50,
        "augment": (),
        "mapper": "shard_map",
    }
    with terminal() as stream:
        train(tiny(**changes), tmp_path / "run")
    shown = stream.text()
    cells = [len(line.split()) for line in shown.splitlines() if re.match(r"\s+[123]/3 ", line)]
    assert cells == [5, 7, 7]
    assert re.search(r"epoch [23] of 3 .*/18 [\d,]+ images/s \d+ s left", shown)
    assert "-:--:--" not in shown
    assert [(r["epoch"], r["split"]) for r in rows(tmp_path / "run")] == [
        (1, "train"),
        (2, "train"),
        (2, "validation"),
        (3, "train"),
        (3, "validation"),
    ]


def test_the_clock_and_the_record_survive(tmp_path):
    """Rows written twice stand once; a tear in the file is dropped; numbers come back as they were."""
    record = Record(tmp_path, 0)
    record.write({"step": 1, "epoch": 1, "split": "train", "loss": 1 / 3})
    record.close()
    with open(tmp_path / "metrics.jsonl", "a") as f:
        f.write(json.dumps({"step": 5, "split": "train"}) + "\nnot json\n[1]\n")
    record = Record(tmp_path, 4)
    assert record.done == {(1, "train")}
    record.write({"step": 5, "split": "test", "loss": 0.5, "error_pct": 2.0})
    record.write_csv()
    record.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in rows] == [1 / 3, 0.5]
    with open(tmp_path / "metrics.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == ["step", "epoch", "split", "loss", "error_pct"]
    assert [{k: v for k, v in row.items() if v} for row in table] == [
        {k: str(v) for k, v in row.items()} for row in rows
    ]
