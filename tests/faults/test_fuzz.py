"""Anything at all in the files that the project itself reads: a value, or one line and exit code 2; never another error."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import random
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
import scipy.io
from hypothesis import HealthCheck, given, settings

from nin_jax import config
from nin_jax.data import fitted
from nin_jax.data.prepare import archives
from nin_jax.data.tfds import prepared_splits
from nin_jax.devices.mesh import host, make_mesh, replicated_like
from nin_jax.errors import UserError
from nin_jax.runs import rollback
from nin_jax.runs.checkpoint import Checkpoints
from nin_jax.runs.directory import finished
from nin_jax.runs.record import Record
from tests.faults import harness

EXAMPLES = 2000 if harness.FULL else 40
many = settings(
    max_examples=EXAMPLES,
    derandomize=not harness.FULL,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
DEFAULT = config.to_dict(config.experiment("digits"))


@st.composite
def configs(draw: st.DrawFn) -> Any:
    """A whole config with some values, keys and sections replaced by anything."""
    plain = json.loads(json.dumps(DEFAULT))
    for _ in range(draw(st.integers(0, 3))):
        where = draw(st.sampled_from([plain, plain.get("model"), plain.get("optimizer"), plain.get("schedule")]))
        if isinstance(where, dict):
            where[draw(st.sampled_from(sorted(where) or ["x"]) | st.text(max_size=8))] = draw(JSON)
    return plain


def texts(objects: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    """JSON of `objects`, cut, with other bytes in it; and bytes that are none."""
    whole = objects.map(lambda o: json.dumps(o).encode())
    cut = st.tuples(whole, st.integers(0, 2000)).map(lambda p: p[0][: p[1]])
    return whole | cut | st.binary(max_size=60) | st.just(b"[" * 100_000) | st.just(b'{"a":' * 100_000)


@many
@given(texts(configs() | JSON))
def test_any_config_json(content: bytes) -> None:
    """config.json of a run: read, looked through for modules, checked."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_bytes(content)
        with contextlib.suppress(UserError):
            found = config.read(path)
            if not config.modules(found):
                config.check(found)


@many
@given(texts(st.lists(st.fixed_dictionaries({"factor": JSON, "to": JSON})) | JSON))
def test_any_list_of_rollbacks(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "rollbacks.json").write_bytes(content)
        with contextlib.suppress(UserError):
            assert 0 <= rollback.factor(rollback.read(Path(folder))) <= 1


@many
@given(texts(st.fixed_dictionaries({"status": JSON | st.just("done"), "fingerprint": JSON}) | JSON))
def test_any_summary(content: bytes) -> None:
    """It is that of a run that is done, or as good as none."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "summary.json").write_bytes(content)
        assert finished(Path(folder), config.check(config.experiment("digits"))) is None


@many
@given(
    texts(
        st.fixed_dictionaries({"splits": JSON | st.lists(st.fixed_dictionaries({"name": JSON, "shardLengths": JSON}))})
    )
)
def test_any_dataset_info(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "dataset_info.json").write_bytes(content)
        try:
            found = prepared_splits(Path(folder))
            assert all(isinstance(n, int) for n in found.values())
        except UserError:
            pass


ROWS = st.fixed_dictionaries({"step": st.integers(0, 50) | JSON, "split": st.sampled_from(["train", "test"]) | JSON})


@many
@given(st.lists(texts(ROWS | JSON), max_size=6), st.integers(0, 50))
def test_any_metrics(lines: list[bytes], step: int) -> None:
    """What is kept are rows, each (step, split) once, none after the step that the run goes on from."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        path.write_bytes(b"\n".join(lines))
        record = Record(Path(folder), step)
        record.close()
        kept = [json.loads(line) for line in path.read_text().splitlines()]
        keys = [(row["step"], row["split"]) for row in kept]
        assert len(set(keys)) == len(keys)
        assert all(key[0] <= step for key in keys)


@many
@given(st.data())
def test_any_preprocessing_file(data: st.DataObject) -> None:
    """preprocess.npz with bytes changed or cut: what was written, or nothing."""
    stats = [{"mean": np.arange(6.0, dtype=np.float32)}, {}]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "preprocess.npz"
        fitted.write_stats(path, "key", stats)
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
        found = fitted.read_stats(path, "key", 2)
        assert found is None or all((found[0][k] == stats[0][k]).all() for k in found[0])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A run directory with one checkpoint of one array."""
    workdir = tmp_path_factory.mktemp("fuzz")
    state = {"w": jax.numpy.arange(6.0)}
    checkpoints = Checkpoints(workdir)
    checkpoints.save(3, state, {"meter": {"loss": 1.0}})
    checkpoints.close()
    return workdir, replicated_like(state, make_mesh())


@pytest.mark.filterwarnings("ignore")  # orbax's, of what it cannot read
@settings(many, max_examples=400 if harness.FULL else 15)
@given(st.data())
def test_any_json_of_a_checkpoint(checkpoint: tuple[Path, Any], data: st.DataObject) -> None:
    """Every JSON file of the layout: the state that was saved, or a line and no checkpoint."""
    workdir, like = checkpoint
    files = [
        f
        for f in sorted((workdir / "checkpoints" / "3").rglob("*"))
        if f.is_file() and f.read_bytes()[:1] in (b"{", b"[")
    ]
    file = data.draw(st.sampled_from(files))
    before = file.read_bytes()
    plain = json.loads(before)
    if isinstance(plain, dict) and plain and data.draw(st.booleans()):
        plain[data.draw(st.sampled_from(sorted(plain)))] = data.draw(JSON)
        content = json.dumps(plain).encode()
    else:
        content = data.draw(texts(JSON))
    file.write_bytes(content)
    try:
        checkpoints = Checkpoints(workdir, read_only=True)
        found = checkpoints.restore(like)
        checkpoints.close()
        assert found is None or np.array_equal(host(found[1]["w"]), np.arange(6.0))
    except UserError:
        pass
    finally:
        file.write_bytes(before)


@many
@given(st.data())
def test_any_idx_file(data: st.DataObject) -> None:
    """MNIST's format, with what the archive holds changed, cut or lengthened, and a right checksum: the arrays or a mistake."""
    dataset = archives.Dataset("mnist", {"train": {"train": 5}}, {"label": None})
    with tempfile.TemporaryDirectory() as folder:
        for name, shape in (("train-images-idx3-ubyte.gz", (5, 28, 28)), ("train-labels-idx1-ubyte.gz", (5,))):
            header = np.array([0x0800 + len(shape), *shape], ">u4").tobytes()
            content = bytearray(header + bytes(int(np.prod(shape))))
            for _ in range(data.draw(st.integers(0, 2))):
                content[data.draw(st.integers(0, 12))] = data.draw(st.integers(0, 255))
            content = bytes(content[: data.draw(st.integers(0, 5000))]) + data.draw(st.binary(max_size=5))
            packed = bytearray(gzip.compress(content, mtime=0))
            if data.draw(st.booleans()):
                packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
            (Path(folder) / name).write_bytes(packed)
        try:
            splits, _ = archives.read(dataset, Path(folder))
            assert all(images.shape == (5, 28, 28) for images, _ in splits["train"])
        except UserError:
            pass


MAT = """
import sys
from pathlib import Path
from nin_jax.errors import UserError
from nin_jax.data.prepare import archives
for name in sys.argv[1:]:
    print(name, flush=True)
    try:
        archives.read_mat(Path(name), 4)
    except UserError:
        pass
"""


def test_any_mat_file(tmp_path: Path, luck: random.Random, tally: Counter[str]) -> None:
    """SVHN's format, in a process of its own, as SciPy's native reader may crash: arrays or a mistake, and crashes are counted.

    Such a file is only read after its SHA-256 was found right, so that a crash takes a forged checksum.
    """
    rng = np.random.default_rng(0)
    names = []
    for i in range(300 if harness.FULL else 30):
        content = io.BytesIO()
        variables = {
            "X": rng.integers(0, 256, (32, 32, 3, 4), np.uint8),
            "y": rng.integers(1, 11, (4, 1)).astype(np.uint8),
        }
        scipy.io.savemat(content, variables, do_compression=bool(i % 2))
        changed = bytearray(content.getvalue())
        for _ in range(luck.randint(1, 4)):
            changed[luck.randrange(128, min(len(changed), 400))] = luck.randrange(256)
        if luck.random() < 0.3:
            changed = changed[: luck.randrange(len(changed))]
        names.append(str(tmp_path / f"{i}.mat"))
        Path(names[-1]).write_bytes(changed)
    while names:
        done = subprocess.run(
            [sys.executable, "-c", MAT, *names], env=harness.environment(), capture_output=True, text=True, timeout=600
        )
        seen = done.stdout.splitlines()
        if done.returncode >= 0:
            assert done.returncode == 0, done.stderr
        tally["arrays or a mistake"] += len(seen) - (done.returncode < 0)
        tally["the native reader crashed"] += done.returncode < 0
        names = names[len(seen) :]
