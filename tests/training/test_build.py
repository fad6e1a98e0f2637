"""From config to run: parts that do not fit are named before any data is read; directories of other runs are kept."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from nin_jax import config as config_lib
from nin_jax.data.datasets import digits
from nin_jax.data.splits import Info
from nin_jax.devices.mesh import AXIS
from nin_jax.errors import UserError
from nin_jax.training.build import Run
from nin_jax.training.evaluate import evaluate_run
from nin_jax.training.loop import train

TINY = {
    "model.widths": ((4,), (4,)),
    "model.kernels": (3, 3),
    "model.pools": ("avg",),
    "optimizer.learning_rate_factors": (),
    "train_split": "train[:64]",
    "eval_split": "test[:64]",
    "epochs": 1,
}


def config(**changes: Any) -> config_lib.Config:
    """The digits experiment with some keys changed, checked."""
    found = config_lib.experiment("digits").copy_and_resolve_references()
    with found.ignore_type():
        found.update_from_flattened_dict(TINY | changes)
    return config_lib.check(found)


def one_device() -> Mesh:
    return jax.make_mesh((1,), (AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])


def mistake(f: Any, *arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        f(*arguments)
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("dataset", "digit", "unknown dataset 'digit': did you mean 'digits'?"),
        ("dataset", "digits(size=8)", "dataset digits has no argument 'size'"),
        ("dataset", "digits(", "'digits(' is not a call"),
        ("dataset", "os.path", "dataset 'os.path': the module has no load"),
        ("dataset", "folder(size='big')", "dataset folder: size='big': 'big' must be of type int"),
        ("dataset", "folder(sise=8)", "dataset folder has no argument 'sise': did you mean 'size'?"),
        ("preprocess", ("gnc()",), "unknown preprocess op 'gnc': did you mean 'gcn'?"),
        (
            "preprocess",
            ("gcn(skale=55)",),
            "preprocess op gcn has no argument 'skale': did you mean 'scale'? (valid: scale, sqrt_bias, use_std)",
        ),
        ("preprocess", ("gcn(scale='x')",), "scale='x': 'x' must be a finite number"),
        ("preprocess", ("zca(eps=None)",), "eps=None: None must be a finite number"),
        ("preprocess", ("gcn(scale=0)",), "'gcn(scale=0)': ValueError: scale must be above 0"),
        ("preprocess", ("gcn(sqrt_bias=-1)",), "scale must be above 0, and sqrt_bias 0 or more"),
        ("preprocess", ("flip()",), "preprocess op 'flip' belongs under 'augment', not 'preprocess'"),
        ("augment", ("gcn()",), "preprocess op 'gcn' belongs under 'preprocess', not 'augment'"),
        ("augment", ("flop()",), "unknown preprocess op 'flop': did you mean 'flip'?"),
        ("augment", ("crop(pad=1.5)",), "preprocess op crop: pad=1.5: 1.5 must be of type int"),
        ("augment", ("crop(pad=-1)",), "'crop(pad=-1)': ValueError: index can't contain negative values"),
        ("batch_size", 20, "batch_size=20 cannot be shared by 8 devices; the nearest that can is 16"),
        ("batch_size", 3, "batch_size=3 cannot be shared by 8 devices; the nearest that can is 8"),
        ("model.kernels", (3,), "2 widths want as many kernels and one pool less: (3,), ('avg',)"),
        ("model.pools", (), "2 widths want as many kernels and one pool less: (3, 3), ()"),
        ("model.widths", ((4,), (-4,)), "-4"),
        ("model.widths", (), "model nin: "),
        ("model.widths", ((), (4,)), "model nin: "),
        ("model.deviations", (0.1, 0.2), "2 numbers for 3 layers; give 1 or 3"),
        ("model.deviations", ("she",), "'she'"),
        ("model.dropout", 1.5, "1.5"),
        ("model.dropout", -0.1, "-0.1"),
    ],
)
def test_parts_that_do_not_fit(key: str, value: Any, said: str) -> None:
    assert said in mistake(lambda: Run(config(**{key: value})))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("train_split", "trian", "dataset digits has no split 'trian': did you mean 'train'?"),
        ("eval_split", "test+tset", "dataset digits has no split 'tset': did you mean 'test'?"),
        ("train_split", "train[:9999]", "split 'train[:9999]' of digits (examples: 1442 in train, 355 in test)"),
        ("train_split", "train[9:9]", "split 'train[9:9]' of digits"),
        ("train_split", "train[0%:0%]", "split 'train[0%:0%]' of digits"),
        ("train_split", "train[1:2:3:4]", "split 'train[1:2:3:4]' of digits"),
        ("train_split", "", "dataset digits has no split ''"),
        ("train_split", "train[:63]", "train_split='train[:63]' has 63 examples, fewer than batch_size=64"),
        ("preprocess", ("mean(per='row')",), "mean(per='row'): must be 'pixel' or 'channel'"),
        ("preprocess", ("scale(divisor=0)",), "scale(divisor=0): must be above 0"),
        ("preprocess", ("zca(eps=-0.1)",), "'zca(eps=-0.1)': eps of -0.1: must be 0 or more"),
    ],
)
def test_data_that_does_not_fit(key: str, value: Any, said: str, tmp_path: Path) -> None:
    assert said in mistake(train, config(**{key: value}), tmp_path / "run")


def test_labels_out_of_range(monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set from outside the zoo, whose labels begin at 1."""
    module = types.ModuleType("my_data.pets")
    module.INFO = Info("pets", 3, (8, 8, 1), {"train": 4}, "")
    module.load = lambda split, data_dir: (np.zeros((4, 8, 8, 1), np.uint8), np.array([0, 2, 3, 1], np.int32))
    monkeypatch.setitem(sys.modules, "my_data.pets", module)
    monkeypatch.setitem(sys.modules, "my_data", types.ModuleType("my_data"))
    run = Run(config(dataset="my_data.pets"))
    said = "split 'train' of my_data.pets: label 3 of example 2 is not between 0 and 2"
    assert mistake(run.load, "train") == f"{said} (1 of 4 are bad; bad_records='skip' leaves them out)"


IMAGES, LABELS = np.zeros((4, 8, 8, 1), np.uint8), np.array([0, 1, 2, 1], np.int32)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((IMAGES, LABELS[:, None]), "labels are int32 [4, 1], expected int32 [4], numbers of classes"),
        ((IMAGES, np.eye(3, dtype=np.int32)[LABELS]), "labels are int32 [4, 3], expected int32 [4]"),
        ((IMAGES, LABELS.astype(np.float64)), "labels are float64 [4], expected int32 [4]"),
        ((IMAGES, LABELS.astype(str)), "labels are <U11 [4], expected int32 [4]"),
        ((IMAGES, LABELS > 0), "labels are bool [4], expected int32 [4]"),
        ((IMAGES, LABELS[:3]), "labels are int32 [3], expected int32 [4]"),
        ((IMAGES, LABELS.tolist()), "load must return two arrays, images and labels: 'list' object has no"),
        ((IMAGES[:0], LABELS[:0]), "images are uint8 [0, 8, 8, 1], expected uint8 [N, 8, 8, 1]"),
        ((IMAGES[..., 0], LABELS), "images are uint8 [4, 8, 8], expected uint8 [N, 8, 8, 1]"),
        ((IMAGES, LABELS, LABELS), "load must return two arrays, images and labels: too many values"),
        (None, "load must return two arrays"),
    ],
)
def test_a_data_set_of_another_form(given: Any, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one's own: as Keras has its labels, one-hot, names, lists."""
    module = types.ModuleType("my_data.pets")
    module.INFO = Info("pets", 3, (8, 8, 1), {"train": 4}, "")
    module.load = lambda split, data_dir: given
    monkeypatch.setitem(sys.modules, "my_data.pets", module)
    monkeypatch.setitem(sys.modules, "my_data", types.ModuleType("my_data"))
    assert f"split 'train' of my_data.pets: {said}" in mistake(Run(config(dataset="my_data.pets")).load, "train")


def of_ones_own(model: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> config_lib.Config:
    """The config of the digits with a model from outside the zoo, "my_models.net"."""
    module = types.ModuleType("my_models.net")
    module.Model = model
    monkeypatch.setitem(sys.modules, "my_models.net", module)
    monkeypatch.setitem(sys.modules, "my_models", types.ModuleType("my_models"))
    found = config_lib.experiment("digits").copy_and_resolve_references()
    found.model = {"name": "my_models.net"}
    return config_lib.check(found)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (
            lambda logits: (logits[:, :3], {}),
            "returns ([1, 3], {}) for one image; expected (logits, maps): logits [1, 10]",
        ),
        (lambda logits: (jax.numpy.pad(logits, ((0, 0), (0, 2))), {}), "returns ([1, 12], {})"),
        (lambda logits: (logits[..., None], {}), "returns ([1, 10, 1], {})"),
        (lambda logits: logits, "returns [1, 10]"),
        (lambda logits: (logits, logits), "returns ([1, 10], [1, 10])"),
    ],
)
def test_a_model_of_another_form(returned: Any, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one's own: without it three logits for ten classes are a loss of NaN, and twelve are a wrong number."""

    class Model(nn.Module):
        num_classes: int
        dtype: Any = np.float32

        @nn.compact
        def __call__(self, image: jax.Array, *, train: bool, example: jax.Array | None = None) -> Any:
            return returned(nn.Dense(self.num_classes)(image.reshape(len(image), -1)))

    assert f"model my_models.net {said}" in mistake(Run, of_ones_own(Model, monkeypatch))


def test_batch_statistics_that_replicas_cannot_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model from outside the zoo, with Flax's own batch normalisation."""

    class Model(nn.Module):
        num_classes: int
        dtype: Any = np.float32

        @nn.compact
        def __call__(self, image: jax.Array, *, train: bool, example: jax.Array | None = None) -> Any:
            x = nn.BatchNorm(use_running_average=not train)(image)
            return nn.Dense(self.num_classes)(x.reshape(len(x), -1)), {}

    said = mistake(Run, of_ones_own(Model, monkeypatch))
    assert "model my_models.net normalises over the batch, but has no attribute axis_name" in said


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    workdir = tmp_path_factory.mktemp("run")
    train(config(), workdir)
    return workdir


def test_a_finished_run_is_not_trained_again(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor when only keys change that do not make the run."""
    before = {f: f.stat().st_mtime_ns for f in done.rglob("*") if f.name not in ("config.json", ".lock")}
    assert train(config(), done) == train(config(keep=3, data_dir="/elsewhere"), done)
    files = {f: f.stat().st_mtime_ns for f in done.rglob("*") if f.name not in ("config.json", ".lock")}
    assert files == before


def test_a_directory_of_another_config_is_refused(done: Path) -> None:
    """The differing keys are named, and nothing in the directory is changed."""
    before = (done / "config.json").read_bytes()
    said = mistake(train, config(seed=1, **{"optimizer.momentum": 0.5}), done)
    assert "holds a run of another config (optimizer.momentum: 0.9, now 0.5; seed: 0, now 1)" in said
    assert (done / "config.json").read_bytes() == before


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\0"])
def test_an_unreadable_config_json_is_a_mistake(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    assert "config.json cannot be read" in mistake(train, config(), tmp_path)


def test_a_mistake_does_not_claim_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one that is found when the data are loaded, nor one found after preprocessing was fitted to it."""
    monkeypatch.setattr("nin_jax.training.build.make_mesh", one_device)
    ops = {"preprocess": ("mean(per='pixel')",)}
    assert "no split 'tset'" in mistake(train, config(eval_split="tset", **ops), tmp_path)
    few = config(train_split="train[:63]", **ops)
    Run(few).fitted(tmp_path, write=True)  # as it would be when the run is killed before the first update
    assert "fewer than batch_size=64" in mistake(train, few, tmp_path)
    right = config(**ops)
    assert train(right, tmp_path)["status"] == "done"
    assert json.loads((tmp_path / "config.json").read_text()) == config_lib.to_dict(right)
    images = digits.load("train[:64]")[0]
    np.testing.assert_allclose(np.load(tmp_path / "preprocess.npz")["0/mean"], images.mean(0), rtol=1e-5)
    assert "holds a run of another config (train_split" in mistake(train, few, tmp_path)


def test_a_config_json_that_is_no_runs_is_kept(tmp_path: Path) -> None:
    """Such as that of a model of another library."""
    (tmp_path / "config.json").write_text('{"architectures": ["ViT"], "seed": 0}')
    assert "holds a run of another config (architectures: ['ViT'], now None" in mistake(train, config(), tmp_path)
    assert "ViT" in (tmp_path / "config.json").read_text()


def test_a_workdir_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for workdir in (tmp_path / "file", tmp_path / "file" / "run"):
        assert mistake(train, config(), workdir) == f"--workdir={workdir} is not a directory"
    assert (tmp_path / "file").read_text() == "mine"


def test_a_workdir_in_use(tmp_path: Path) -> None:
    """Only as long as the other process lives, however it ends."""
    code = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print('', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert mistake(train, config(), tmp_path) == f"--workdir={tmp_path} is in use by a live process; choose another"
        other.kill()
    assert "no split 'x'" in mistake(train, config(train_split="x"), tmp_path)
    with open(tmp_path / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_eval_without_a_checkpoint(tmp_path: Path) -> None:
    assert "holds no run; train first" in mistake(evaluate_run, config(), tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    (tmp_path / "file").write_text("mine")
    assert "config.json cannot be read: " in mistake(evaluate_run, config(), tmp_path / "file")


def test_eval_of_an_incompatible_config(done: Path) -> None:
    """The keys that differ are named."""
    before = sorted(done.rglob("*"))
    said = mistake(evaluate_run, config(**{"model.widths": ((8,), (4,))}), done)
    assert "is of another network: " in said
    assert "; differs from the run: model.widths: [[4], [4]], now [[8], [4]]" in said
    assert sorted(done.rglob("*")) == before


def test_eval_of_another_split(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What may differ does, and is named; the last line is the result."""
    result = evaluate_run(config(eval_split="test[:32]"), done)
    lines = capsys.readouterr().out.splitlines()
    assert (result["examples"], result["step"], json.loads(lines[-1])) == (32, 1, result)


@pytest.mark.parametrize(("size", "batches"), [(0, 6), (128, 3), (1024, 1)])
def test_eval_by_batches_of_its_own_size(size: int, batches: int, done: Path) -> None:
    """All 355 digits of the test; how many at a time changes nothing but the last bits."""
    run = Run(config(eval_split="test", eval_batch_size=size))
    assert run.evaluation(run.load("test")).batches == batches
    result = evaluate_run(run.config, done)
    reference = evaluate_run(config(eval_split="test", eval_batch_size=8), done)
    assert result == reference | {"loss": pytest.approx(reference["loss"], rel=1e-5)}
