"""The trained networks that come with the package, and folders like theirs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import nin_jax
from nin_jax import main
from nin_jax.errors import UserError
from nin_jax.training import pretrained, safetensors
from nin_jax.training.pretrained import CARD, CONFIG, FOLDER, WEIGHTS
from nin_jax.weights import publish

REAL = Path(os.environ.get("NIN_JAX_TFDS", Path(__file__).parents[3] / "shared" / "tfds"))
NAMES = pretrained.names()
WHOLE = [name if name == "nin.digits" else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]


# In a process of its own programs are compiled as a user's are; as tests compile them, 10,000 images take twice as long.
WRONG = """
import sys
import nin_jax
from nin_jax import registry
name, dataset, split, data_dir = sys.argv[1:]
images, labels = registry.find("datasets", dataset).load(split, data_dir)
print(len(labels), (nin_jax.load(name).logits(images).argmax(-1) != labels).sum())
"""


@pytest.mark.parametrize("name", WHOLE)
def test_the_error_of_a_card_is_that_of_its_file(name, clean_env):
    """To the last digit, on every image of its split."""
    classifier = nin_jax.load(name)
    facts, dataset = classifier.metadata, classifier.info.name
    if dataset != "digits" and not (REAL / dataset).is_dir():
        pytest.skip(f"{dataset} is not prepared in {REAL}")
    command = [sys.executable, "-c", WRONG, name, dataset, facts["split"], str(REAL)]
    done = subprocess.run(command, check=True, env=clean_env, stdout=subprocess.PIPE, text=True)
    count, wrong = map(int, done.stdout.split())
    assert count == facts["examples"]
    assert 100 * wrong / count == facts["error_pct"]
    assert f"**{facts['error_pct']:.2f} %** of the {count:,} images" in (FOLDER / name / CARD).read_text()


def evaluated(capsys, *words):
    """What --mode=eval prints: the error of a network, and its mean loss."""
    main.run(main.parse(["nin_jax", "--mode=eval", *words]))
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    return said["error_pct"], pytest.approx(said["loss"], abs=1e-6)


def test_a_network_can_be_evaluated_again_by_anyone(folder, capsys):
    """By its name, from its folder, and as a member of an ensemble: what its card says, to the last digit."""
    facts = nin_jax.load("nin.digits").metadata
    stated = facts["error_pct"], facts["loss"]
    assert evaluated(capsys, "--config=nin.digits") == stated
    assert evaluated(capsys, f"--config={folder}", "--config.eval_batch_size=48") == stated
    assert evaluated(capsys, "--config=digits", f"--ensemble={folder},{FOLDER / 'nin.digits'}") == stated
    for words, said in (
        (["--config=nin.digits"], "is a trained network and has no run to resume; --mode=eval evaluates it"),
        (["--config=nin.digit", "--mode=eval"], "no such file; did you mean 'nin.digits'?"),
        (["--config=nin.digits", "--mode=eval", "--config.model.widths=((8,),(4,))"], "its config says"),
    ):
        with pytest.raises(UserError, match=re.escape(said)):
            main.run(main.parse(["nin_jax", *words]))
    (folder / CONFIG).write_text("{}")
    with pytest.raises(UserError, match="is not the folder of a network"):
        main.parse(["nin_jax", f"--config={folder}", "--mode=eval"])


def test_a_run_directory_that_is_called_like_a_network_is_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert pretrained.find_unless_run("nin.digits") == pretrained.find("nin.digits")
    (tmp_path / "nin.digits" / "checkpoints").mkdir(parents=True)
    assert pretrained.find_unless_run("nin.digits") is None
    (tmp_path / "nin.digits" / "config.json").write_text("{}")
    assert main.find("nin.digits") == (Path("nin.digits"), None)


@pytest.mark.parametrize("name", ["x" * 5000, "~nobody-of-this-name/x", "a\0b"])
def test_a_name_that_no_file_can_have_is_no_network(name):
    assert pretrained.find(name) is None
    with pytest.raises(UserError, match="no such file"):
        main.find(name)


def test_every_network_is_listed_and_says_the_same_everywhere():
    assert {"nin.digits"} <= set(NAMES) == {f.name for f in FOLDER.iterdir() if (f / WEIGHTS).exists()}
    for name in NAMES:
        classifier, config = nin_jax.load(name), json.loads((FOLDER / name / CONFIG).read_text())
        assert config.pop("sha256") == pretrained.checksums()[name]
        assert config == classifier.metadata
        assert (FOLDER / name / CARD).read_text() == publish.card(config)
    assert sum(f.stat().st_size for f in FOLDER.rglob("*") if f.is_file()) < 9e6  # of the 12 MB of the wheel


def test_the_cards_are_those_of_the_hub():
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub reads model cards")
    for name in NAMES:
        card, facts = hub.ModelCard.load(FOLDER / name / CARD), nin_jax.load(name).metadata
        error, accuracy = card.data.eval_results
        assert (card.data.model_name, card.data.license) == (name, facts["licence"])
        assert (error.metric_type, error.metric_value) == ("error", round(facts["error_pct"], 4))
        assert error.metric_value + accuracy.metric_value == pytest.approx(100)


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(FOLDER / "nin.digits", tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize("known", [True, False])
def test_a_flipped_bit_is_refused_in_one_line(folder, known):
    """By the table of the package, and in a folder of one's own by its config.json."""
    sha256 = pretrained.checksums()["nin.digits"] if known else None
    assert safetensors.read(folder, sha256).class_names[3] == "3"
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1000] ^= 4
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(UserError, match=r"model.safetensors is damaged: its SHA-256 is .{64}, expected .{64}$"):
        safetensors.read(folder, sha256)
    with pytest.raises(UserError, match="is damaged"):
        nin_jax.load(folder)


def rewrite(folder, change):
    """Writes the file of a folder anew, with other facts or tensors."""
    content = (folder / WEIGHTS).read_bytes()
    tensors = safetensors.tensors_of(content)
    facts = dict(safetensors.decode(content, "").metadata)
    change(tensors, facts)
    return safetensors.encode(tensors, facts)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda t, f: t.pop("params/mlpconv1/conv1/bias"),
            "params/mlpconv1/conv1/bias has the shape None, its config says",
        ),
        (lambda t, f: t.update(extra=np.zeros(3)), "does not hold the network of its config"),
        (lambda t, f: t.update({"preprocess/4/mean": np.zeros(1)}), "preprocess/4/mean belongs to nothing"),
        (lambda t, f: t["params/mlpconv1/conv1/bias"].fill(np.nan), "bias has numbers that are not finite"),
        (lambda t, f: f.pop("dataset"), "is not the file of a network: its metadata has no dataset"),
        (lambda t, f: f["config"].update(model=3), "is not the file of a network: 'int' object is not a mapping"),
        (lambda t, f: f["config"].update(dataset="evil.module"), "names modules outside the zoo \\(evil.module\\)"),
        (lambda t, f: f["config"]["model"].update(widths=[[4], [5]]), "does not hold the network of its config"),
    ],
)
def test_a_file_that_is_something_else_is_refused_in_one_line(folder, change, said):
    with pytest.raises(UserError, match=said) as caught:
        safetensors.decode(rewrite(folder, change), "model.safetensors")
    assert "\n" not in str(caught.value)


def test_a_whitening_matrix_is_refused_unless_it_is_asked_for(monkeypatch):
    """Then its upper triangle is kept in float16; everything of a small network comes back as it was written."""
    monkeypatch.setattr(safetensors, "LARGE", 500)
    rng = np.random.default_rng(0)
    half = rng.standard_normal((12, 12)).astype(np.float16)
    stats = [{}, {"mean": np.float32([1.5]), "matrix": np.float32(np.triu(half) + np.triu(half, 1).T)}]
    variables = {"params": {"a": {"kernel": np.float32(half), "bias": rng.standard_normal(12).astype(np.float32)}}}
    with pytest.raises(UserError, match=r"preprocess/1/matrix has .* MB, more than the network; --whitening"):
        safetensors.pack(variables, stats)
    tensors = safetensors.pack(variables, stats, whitening=True)
    assert tensors["preprocess/1/matrix:upper"].shape == (78,)
    back, learned = safetensors.unpack(tensors, 2)
    np.testing.assert_array_equal(learned[1]["matrix"], stats[1]["matrix"])
    np.testing.assert_array_equal(learned[1]["mean"], stats[1]["mean"])
    for name, value in variables["params"]["a"].items():
        np.testing.assert_array_equal(back["params"]["a"][name], value)
    with pytest.raises(UserError, match="params/a/kernel has numbers that are not finite, or too large for float16"):
        safetensors.pack({"params": {"a": {"kernel": np.float32([1e6])}}}, [])


def test_a_run_is_published_with_its_measured_error(tmp_path, capsys):
    """Also one whose checkpoints were left out; it loads from its folder, as a network of `create_model` too."""
    words = ["--config.epochs=2", "--config.model.widths=((8,8),(8,))", "--config.optimizer.learning_rate_factors=()"]
    main.run(main.parse(["nin_jax", "--config=digits", f"--workdir={tmp_path / 'run'}", *words]))
    (tmp_path / pretrained.SUMS).touch()
    publish.main([str(tmp_path / "run"), "-o", str(tmp_path / "nin.small")])
    facts = json.loads((tmp_path / "nin.small" / CONFIG).read_text())
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert abs(facts["error_pct"] - summary["test_error_pct"]) < 1  # float16 moves a few of 355 images
    assert facts["loss"] == pytest.approx(summary["test_loss"], rel=0.01)
    assert "data_dir" not in facts["config"]
    assert f"{facts['error_pct']:.2f} % of 355 images" in capsys.readouterr().err
    assert pretrained.checksums(tmp_path) == {"nin.small": facts["sha256"]}
    run, folder = nin_jax.load(tmp_path / "run"), nin_jax.load(tmp_path / "nin.small")
    images = np.arange(3 * 64, dtype=np.uint8).reshape(3, 8, 8, 1)
    np.testing.assert_allclose(folder.logits(images), run.logits(images), rtol=0, atol=0.05)
    _, variables = nin_jax.create_model("nin", pretrained=tmp_path / "nin.small")
    assert variables["params"]["mlpconv1"]["cccp1"]["kernel"].shape == (1, 1, 8, 8)

    flat = {f"params/{a}/{b}/{c}": v for a, t in run.params.items() for b, u in t.items() for c, v in u.items()}
    shutil.rmtree(tmp_path / "run/checkpoints")
    (tmp_path / "run/variables.safetensors").write_bytes(
        safetensors.encode({k: np.asarray(v) for k, v in flat.items()}, {})
    )
    publish.main([str(tmp_path / "run"), "-o", str(tmp_path / "nin.again")])
    again = json.loads((tmp_path / "nin.again" / CONFIG).read_text())
    assert {**again, "name": "", "sha256": ""} == {**facts, "name": "", "sha256": ""}


def test_what_is_not_there_is_said_in_one_line(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"no trained network 'nin.digit', .*: (did you mean|valid).*nin.digits"):
        nin_jax.load("nin.digit")
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        nin_jax.load(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"hf-hub:a/b needs huggingface_hub: python -m pip install"):
        nin_jax.load("hf-hub:a/b")
