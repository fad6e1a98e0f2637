"""The command `nin-jax`: its words, what they print, and mistakes on them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import nin_jax
from nin_jax import __main__ as command
from nin_jax.cli import list as listing
from nin_jax.errors import UserError

ROOT = Path(__file__).parents[2]
FIVE = ROOT / "tests/images/nin.digits-5.png"  # the first test image of the digits


def nin_jax_command(env: dict[str, str], cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs `nin-jax` in `cwd`, which is not the checkout."""
    line = [sys.executable, "-m", "nin_jax", *words]
    env = env | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(line, capture_output=True, text=True, env=env, cwd=cwd, timeout=300)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "a command is expected (valid: list, predict, train"),
        ("trian", "unknown command 'trian': did you mean 'train'?"),
        ("train --mode=eval", "--mode: `nin-jax train` sets it; leave the flag out"),
        ("list nothing-like-this", "PATTERN=nothing-like-this: nothing is called that"),
        ("list --jsn", "nin-jax list: unknown flag --jsn: did you mean '--json'?"),
        ("list a b", "nin-jax list: argument 'b' is one too many"),
        ("predict", "the following arguments are required: IMAGE"),
        ("predict a.png", "one of --model=NAME (valid: nin."),
        ("predict a.png --model=cifar10 --run=runs/x", "--run=DIR is expected"),
        ("predict a.png --modle=digits", "unknown flag --modle=digits: did you mean '--model'?"),
        ("predict a.png --run=runs/none", "--run=runs/none: no such directory"),
        ("predict a.png --run=~nobody-of-this-name/x", "--run=~nobody-of-this-name/x: no such directory"),
        ("board ~nobody-of-this-name/x", "~nobody-of-this-name/x is not a directory"),
        ("export --model=nin.digits --format=onnx", "the following arguments are required: -o/--output"),
        ("tables --colect runs/x", "unknown flag --colect: did you mean '--collect'?"),
    ],
)
def test_a_mistake_is_one_line(words: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["nin-jax"])  # which a command sets
    with pytest.raises(UserError) as caught:
        command.entry(words.split())()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_config_needs_no_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["nin-jax"])
    command.entry(["describe", "cifar10:fast", "--json"])
    assert sys.argv == ["nin-jax describe", "--mode=describe", "--config=cifar10:fast", "--json"]


def test_each_word_is_a_function() -> None:
    """The table names what is there, and the help has a line for each word."""
    for name, entry in command.COMMANDS.items():
        assert f"  {name} " in command.usage()
        words = [name, *entry.before]
        assert callable(command.entry(words[:1]))


def test_the_list_names_everything_and_imports_no_jax(clean_env: dict[str, str], tmp_path: Path) -> None:
    code = (
        "import sys; before = {*sys.modules}; import nin_jax\n"
        "others = {name.split('.')[0] for name in {*sys.modules} - before} - sys.stdlib_module_names - {'nin_jax'}\n"
        "assert not others, others; from nin_jax.__main__ import main; main(); sys.exit('jax' in sys.modules)"
    )
    line = [sys.executable, "-c", code, "list", "--json"]
    env = clean_env | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, capture_output=True, text=True, env=env, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["models"] == nin_jax.list_models()
    assert found["pretrained"] == nin_jax.list_pretrained()
    assert {"digits", "ablations/dropout"} <= {*found["experiments"]}
    assert "mnist" in found["datasets"]


def test_a_pattern_is_a_part_of_a_name_or_has_wildcards() -> None:
    assert {*listing.names("zfnet")["models"]} == {"zfnet", "network_in_zfnet"}
    assert listing.names("zf*")["models"] == ["zfnet"]


def test_predict_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A five on a large black ground: the box of the class map lies about it; two pictures of one name get two overlays."""
    ground = Image.new("L", (60, 40))
    ground.paste(Image.open(FIVE).convert("L").resize((16, 16)), (36, 12))
    (tmp_path / "b").mkdir()
    for file in (tmp_path / "a.png", tmp_path / "b/a.png"):
        ground.save(file)
    words = f"predict {tmp_path}/a.png {tmp_path}/b/a.png --model=nin.digits --detect --maps={tmp_path}/maps".split()
    for extra in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["nin-jax"])
        command.entry([*words, *extra])()
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 2
    found = json.loads(lines[0])
    assert found["image"] == f"{tmp_path}/a.png"
    assert 1 <= len(found["objects"]) <= 5
    for of in found["objects"]:
        x0, y0, x1, y1 = of["box"]
        assert 0 <= x0 < x1 <= 60
        assert 0 <= y0 < y1 <= 40
    assert found["map"] == f"{tmp_path}/maps/a-objects.png"
    assert Image.open(f"{tmp_path}/maps/a-objects-2.png").size == (60, 40)


def test_a_strip_is_not_enlarged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its shorter side would become 24 pixels, and its longer one 24,240."""
    Image.new("L", (1010, 10)).save(tmp_path / "strip.png")
    monkeypatch.setattr(sys, "argv", ["nin-jax"])
    with pytest.raises(UserError, match=r"strip\.png: 1010 x 10 pixels are a strip"):
        command.entry(["predict", str(tmp_path / "strip.png"), "--model=nin.digits", "--detect"])()


def test_predict(clean_env: dict[str, str], tmp_path: Path) -> None:
    """Two files of one name, one of them large and coloured: a line and a map each."""
    (tmp_path / "large").mkdir()
    Image.open(FIVE).convert("RGB").resize((320, 320)).save(tmp_path / f"large/{FIVE.name}")
    words = "predict", str(FIVE), f"large/{FIVE.name}", "--model=nin.digits", "--maps=maps", "--json"
    done = nin_jax_command(clean_env, tmp_path, *words)
    assert (done.returncode, done.stderr) == (0, "")
    for line, image, suffix in zip(done.stdout.splitlines(), words[1:3], ("", "-2"), strict=True):
        found = json.loads(line)
        assert (found["image"], found["name"]) == (image, "5")
        assert found["top"][0] == {key: found[key] for key in ("name", "index", "probability")}
        probabilities = [guess["probability"] for guess in found["top"]]
        assert probabilities == sorted(probabilities, reverse=True)
        assert len(probabilities) == 5
        assert found["map"] == f"maps/{FIVE.stem}-evidence{suffix}.png"
        assert np.ptp(np.asarray(Image.open(tmp_path / found["map"])).astype(int)) > 50


def test_no_name_of_a_file_ends_a_command_or_reaches_the_terminal(clean_env: dict[str, str], tmp_path: Path) -> None:
    """An accent on a terminal of ASCII; bytes that are no text in any encoding; what a terminal would obey."""
    names = "caf\u00e9.png", "\udcff.png", "\x1b[31m\n.png"
    for name in names:
        Image.open(FIVE).save(tmp_path / name)
    for extra in ([], ["--detect"]):
        words = "predict", *names, "--model=nin.digits", *extra
        done = nin_jax_command(clean_env | {"PYTHONIOENCODING": "ascii:strict"}, tmp_path, *words)
        assert (done.returncode, done.stderr) == (0, "")
        shown = [line.split(":")[0] for line in done.stdout.splitlines()]
        assert shown == [r"caf\xe9.png", r"\udcff.png", r"\x1b[31m\n.png"]


@pytest.mark.slow
@pytest.mark.parametrize("words", ["page -o five.html", "export --format=safetensors -o net.safetensors"])
def test_a_network_as_a_file(words: str, clean_env: dict[str, str], tmp_path: Path) -> None:
    done = nin_jax_command(clean_env, tmp_path, *words.split(), "--model=nin.digits")
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.iterdir()
    assert file.stat().st_size > 50_000
    assert file.name in done.stderr
