"""A run directory from a stranger: weights and JSON are read, nothing in it is executed, and nothing outside is touched."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest

import nin_jax
from nin_jax import config, main, registry, storage
from nin_jax.data import pictures, splits
from nin_jax.errors import StorageFailed, UserError
from nin_jax.runs.directory import claim
from nin_jax.training.state import init_variables
from tests.faults import harness


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.canary),)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # orbax's reads that come back late
def test_nothing_is_unpickled(calm: Path, tmp_path: Path, tally: Counter[str]) -> None:
    """A pickle in place of any file: evaluation ends well or with one line, and what the pickle would do is not done."""
    canary = tmp_path / "canary"
    content = pickle.dumps(Payload(canary))
    pickle.loads(content)
    canary.rmdir()  # it would work
    arrays = io.BytesIO()
    np.savez(arrays, key=np.array([Payload(canary)], object), allow_pickle=True)
    files = sorted(f.relative_to(calm) for f in calm.rglob("*") if f.is_file() and f.parent.name != "tensorboard")
    last = str(harness.steps(calm)[-1])
    files = [f for f in files if f.parts[0] != "checkpoints" or f.parts[1] == last]
    command = main.parse(["nin_jax", *harness.words(tmp_path / "run"), "--mode=eval"])
    for file in files if harness.FULL else [f for f in files if f.suffix == ".npz" or len(f.parts) in (1, 4)]:
        shutil.copytree(calm, tmp_path / "run")
        (tmp_path / "run" / file).write_bytes(arrays.getvalue() if file.suffix == ".npz" else content)
        with contextlib.suppress(UserError):
            main.run(command)
        assert not canary.exists(), file
        shutil.rmtree(tmp_path / "run")
        tally["not executed"] += 1


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"name": "evil.net"}},
        {"model": {"name": "evil"}},
        {"dataset": "evil.data(x=1)"},
        {"dataset": "(evil.data)(x=1)"},
        {"task": "evil.task"},
        {"preprocess": ["gcn()", "evil.op()"]},
        {"augment": ["evil.op"]},
    ],
    ids=str,
)
def test_no_module_is_imported_by_a_name_in_a_config(
    change: dict, calm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tally: Counter[str]
) -> None:
    """A name in config.json may be that of a module, and one may lie in the current directory: load_run refuses it."""
    (tmp_path / "evil").mkdir()
    for name in ("__init__", "net", "data", "task", "op"):
        (tmp_path / "evil" / f"{name}.py").write_text("raise SystemExit('executed')")
    monkeypatch.syspath_prepend(tmp_path)
    workdir = tmp_path / "run"
    shutil.copytree(calm, workdir)
    plain = config.to_dict(config.read(workdir / "config.json"))
    change = {k: plain[k] | v if isinstance(v, dict) else v for k, v in change.items()}
    (workdir / "config.json").write_text(json.dumps(plain | change))
    with pytest.raises(UserError, match=r"names modules outside the zoo \(evil"):
        nin_jax.load_run(str(workdir))
    with pytest.raises(UserError, match="SystemExit: executed"):
        nin_jax.load_run(str(workdir), trust=True)
    tally["exit 2, named"] += 1


def test_no_module_is_imported_by_a_name_inside_an_argument(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of HCP and the objects of scenes are the zoo's own, whoever asks."""
    (tmp_path / "evil.py").write_text("raise SystemExit('executed')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("evil", "evil(x=1)", "evil.net"):
        with pytest.raises(UserError, match=r"unknown model 'evil.*only the zoo's own"):
            jax.eval_shape(lambda n=name: init_variables(registry.create("hcp", 3, network=n), 0, (8, 8, 3)))
        with pytest.raises(UserError, match=r"unknown dataset 'evil.*only the zoo's own"):
            splits.facts(registry.call("datasets", f"scenes(of={name!r})"), None)


def test_a_lock_that_is_a_link(tmp_path: Path) -> None:
    """What it points to is neither opened nor emptied."""
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "precious")
    with (
        pytest.raises(StorageFailed),
        claim(tmp_path / "run", main.parse(["nin_jax", *harness.words(tmp_path / "run")]).config),
    ):
        pass
    assert (tmp_path / "precious").read_text() == "mine"


def test_files_that_are_links_are_replaced(tmp_path: Path) -> None:
    """And what they point to stays as it is."""
    (tmp_path / "precious").write_text("{}")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "summary.json").symlink_to(tmp_path / "precious")
    storage.write_json(tmp_path / "run" / "summary.json", {"a": 1})
    assert (tmp_path / "precious").read_text() == "{}"
    assert not (tmp_path / "run" / "summary.json").is_symlink()


def test_a_compressed_preprocessing_file(
    calm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], tally: Counter[str]
) -> None:
    """A file that would unpack to a thousand times its size is not unpacked: the preprocessing is fitted again."""
    shutil.copytree(calm, tmp_path / "run")
    file = tmp_path / "run" / "preprocess.npz"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as bomb, bomb.open("key.npy", "w") as member:
        member.write(bytes(2**26))
    main.run(main.parse(["nin_jax", *harness.words(tmp_path / "run"), "--mode=eval"]))
    assert "preprocess.npz is broken (it is compressed): fitting the preprocessing again" in capsys.readouterr().err
    tally["not unpacked"] += 1


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # as pictures.py has it
def test_the_pixels_of_a_record_are_limited(tally: Counter[str]) -> None:
    """By its header, before it is decoded; and only JPEG and PNG are looked at."""
    from tests.data.datasets.test_folder import bomb

    for side in (8_000, 100_000):
        with pytest.raises(pictures.Unreadable, match="pixels"):
            pictures.open_picture(bomb(side, side))
        tally["refused"] += 1
    gif = io.BytesIO()
    pictures.Image.new("L", (8, 8)).save(gif, "GIF")
    with pytest.raises(pictures.Unreadable, match="cannot identify"):
        pictures.open_picture(gif.getvalue())
