"""SVHN from files in the official format to a trained network, and the paper's split of it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from nin_jax import main
from nin_jax.data.datasets import svhn
from nin_jax.data.prepare import archives as archives_of
from nin_jax.data.prepare import prepare
from nin_jax.errors import UserError

Files = dict[str, tuple[np.ndarray, np.ndarray]]  # split -> X uint8 [32, 32, 3, N], y uint8 [N, 1] from 1 to 10


def prepared(files: Files, root: Path) -> str:
    """Writes the MATLAB files and prepares them as the command does with the official ones; returns the data_dir."""
    archives, splits = [], {}
    for official in archives_of.official("svhn_cropped").archives:
        split = official.file.removesuffix("_32x32.mat")
        path = root / official.file
        scipy.io.savemat(path, dict(zip("Xy", files[split], strict=True)), do_compression=True)
        content = path.read_bytes()
        archives.append(archives_of.Archive(official.url, len(content), hashlib.sha256(content).hexdigest()))
        splits[split] = {official.file: len(files[split][1])}
    dataset = dataclasses.replace(archives_of.DATASETS["svhn_cropped"], splits=splits, archives=archives)
    prepare.prepare(dataset, root / "data", root)
    return str(root / "data")


def test_from_the_official_files_to_a_trained_network(tmp_path: Path) -> None:
    """The experiment itself, only narrow and of fewer digits: every pixel in its place, and label 10 is the digit 0."""
    rng = np.random.default_rng(0)
    files = {
        split: (rng.integers(0, 256, (32, 32, 3, n), np.uint8), (np.arange(n, dtype=np.uint8) % 10 + 1)[:, None])
        for split, n in (("train", 21), ("test", 11), ("extra", 12))
    }
    data_dir = prepared(files, tmp_path)
    images, labels = svhn.load("train+extra", data_dir)
    x, y = (np.concatenate([files[split][i] for split in ("train", "extra")], i - 1) for i in (0, 1))
    assert images.shape == (33, 32, 32, 3)
    for i in range(33):
        np.testing.assert_array_equal(images[i], x[:, :, :, i], strict=True)
        assert labels[i] == (0 if y[i, 0] == 10 else y[i, 0])

    words = [
        "nin_jax", "--config=experiments/svhn.py", f"--config.data_dir={data_dir}", f"--workdir={tmp_path / 'run'}",
        "--config.train_split=train+extra", "--config.batch_size=16", "--config.epochs=1", "--config.model.widths=((8, 4, 4), (8, 4, 4), (8, 4))",
        "--config.schedule.boundaries_epochs=()",
    ]  # fmt: skip
    main.run(main.parse(words))
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["status"], summary["step"], summary["test_examples"]) == ("done", 2, 11)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert {row["split"] for row in rows} >= {"train", "test"}
    assert all(math.isfinite(row["loss"]) for row in rows)


SIZES = {"train": 4_300, "test": 10, "extra": 2_150}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Files]:
    """As many examples of every digit as the paper holds out, and a few more; each says in its pixels which one it is."""
    rng, files = np.random.default_rng(1), {}
    for number, (split, n) in enumerate(SIZES.items()):
        places = np.stack([np.full(n, number), *np.divmod(np.arange(n), 256)]).astype(np.uint8)
        digits = rng.permutation(np.arange(n) % 10 + 1).astype(np.uint8)
        files[split] = np.broadcast_to(places, (32, 32, 3, n)), digits[:, None]
    return prepared(files, tmp_path_factory.mktemp("svhn")), files


def examples(split: str, data_dir: str) -> list[tuple[int, int, int]]:
    """(number of the official split, place in it, digit) of every example."""
    images, labels = svhn.load(split, data_dir)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int32
    assert (images == images[:, :1, :1]).all()
    number, high, low = images[:, 0, 0].astype(int).T
    return list(zip(number.tolist(), (256 * high + low).tolist(), labels.tolist(), strict=True))


def test_the_papers_split(whole: tuple[str, Files]) -> None:
    data_dir, files = whole
    validation, train = (examples(split, data_dir) for split in ("paper_validation", "paper_train"))
    assert len(validation) == 6_000
    for digit in range(10):
        assert sum(e[0] == 0 and e[2] == digit for e in validation) == 400  # of train
        assert sum(e[0] == 2 and e[2] == digit for e in validation) == 200  # of extra
    # Together they are train and extra, each once; both in order, and so not the first 400.
    assert sorted(validation + train) == examples("train", data_dir) + examples("extra", data_dir)
    assert (validation, train) == (sorted(validation), sorted(train))
    assert train[0][1] < 4_000

    # pylearn2's rule, on the labels as the files have them: 1 to 10, one stream for both files.
    rng, wanted = np.random.RandomState(322), []
    for number, split, count in ((0, "train", 400), (2, "extra", 200)):
        for label in range(1, 11):
            places = [i for i, y in enumerate(files[split][1][:, 0]) if y == label]
            rng.shuffle(places)
            wanted += [(number, place, label % 10) for place in places[:count]]
    assert validation == sorted(wanted)


def test_the_papers_split_in_split_expressions(whole: tuple[str, Files]) -> None:
    data_dir, _ = whole
    got = examples("paper_train[-3:]+test[:2]+paper_validation[:1%]", data_dir)
    train, test, validation = (examples(split, data_dir) for split in ("paper_train", "test", "paper_validation"))
    assert got == train[-3:] + test[:2] + validation[:60]
    with pytest.raises(UserError, match=r"450 in paper_train, 6000 in paper_validation"):
        svhn.load("paper_train[:451]", data_dir)
    with pytest.raises(UserError, match=r"no split 'paper_test': did you mean 'paper_train'\?"):
        svhn.load("paper_test", data_dir)


def test_a_part_of_svhn_has_no_papers_split(whole: tuple[str, Files], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svhn, "HELD_OUT", {"train": 600, "extra": 10})
    message = "split 'paper_train' of svhn_cropped: train has 430 examples of the digit 1, 600 are held out"
    with pytest.raises(UserError, match=message):
        svhn.load("paper_train", whole[0])
    monkeypatch.setattr(svhn, "HELD_OUT", {"train": 600, "extra": 100})
    with pytest.raises(
        UserError, match=r"no split 'paper_train': did you mean 'train'\? \(valid: extra, test, train\)"
    ):
        svhn.load("paper_train", whole[0])


def test_the_official_sizes_rule_where_nothing_is_prepared(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run `python -m nin_jax\.data\.prepare svhn_cropped --data_dir="):
        svhn.load("paper_train[598387:598388]+paper_validation[5999:]", str(tmp_path))
    with pytest.raises(UserError, match=r"598388 in paper_train, 6000 in paper_validation"):
        svhn.load("paper_train[:598389]", str(tmp_path))
