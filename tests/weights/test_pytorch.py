"""Networks written in PyTorch, their files, and what our networks make of the imported weights."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import nin_jax
from nin_jax import main
from nin_jax.data import fitted
from nin_jax.errors import UserError
from nin_jax.training.build import Run
from nin_jax.weights import imported, pytorch

torch = pytest.importorskip("torch", reason="PyTorch writes the files")
nn = torch.nn

SMALL = {"kernels": (3, 3), "widths": ((4, 3), (5,)), "pools": ("max",), "dropout_kind": "inverted"}
NORMALISED = {"kernels": (3,), "widths": ((4,),), "pools": (), "batch_norm": True, "head": "fc"}


def experiment(folder: Path, model=SMALL) -> str:
    """The flag of an experiment on the digits with such a network."""
    file = folder / "small.py"
    file.write_text(f"""
from nin_jax.config import experiment

def get_config(arg=None):
    config = experiment("digits")
    with config.unlocked():
        config.model = {{"name": "nin"}} | {model}
    return config
""")
    return f"--config={file}"


def run(folder: Path, model=SMALL) -> Run:
    return Run(main.parse(["nin_jax", experiment(folder, model)]).config)


def network() -> nn.Sequential:
    """The network SMALL, as a port would have it: layers by number, no names."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.ReLU()),
        *(nn.MaxPool2d(3, 2, ceil_mode=True), nn.Dropout(0.5)),
        *(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 10, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    ).eval()


def save(weights, file: Path, prefix: str = "") -> Path:
    weights = {prefix + name: value for name, value in weights.items()}
    if file.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(weights, file)
    elif file.suffix == ".tar":
        torch.save({"epoch": 3, "state_dict": weights}, file)
    else:
        torch.save(weights, file)
    return file


@pytest.mark.parametrize("name", ["net.safetensors", "net.pth", "net.pth.tar"])
def test_logits_are_those_of_pytorch(name, tmp_path, capsys):
    """From the file to a run directory to `load_run`, on pictures as they come."""
    theirs = network()
    file = save(theirs.state_dict(), tmp_path / name, prefix="module.features.")
    words = [f"--workdir={tmp_path / 'run'}", experiment(tmp_path)]
    pytorch.main(["pytorch", str(file), *words])
    assert "module.features.0 -> conv1, module.features.2 -> cccp1" in capsys.readouterr().err
    run = nin_jax.load_run(str(tmp_path / "run"))
    pictures = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)
    prepared = np.asarray(jax.jit(lambda i: preprocessed(run, i))(pictures))
    expected = theirs(torch.from_numpy(prepared.transpose(0, 3, 1, 2).copy())).detach().numpy()
    np.testing.assert_allclose(run(pictures)[0], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    source = json.loads((tmp_path / "run/source.json").read_text())
    assert (source["file"], source["bytes"]) == (name, file.stat().st_size)
    main.run(main.parse(["nin_jax", *words, "--mode=eval"]))
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["step"] == 0


def preprocessed(run, pictures):
    return fitted.apply(Run(run.config).preprocess, run._stats, pictures)


def test_the_names_of_the_layers_matter_where_they_are_ours(tmp_path):
    """The authors' names in another order, one of them twice as deep."""
    theirs = network().state_dict()
    ours = {"0": "conv1", "2": "cccp1", "6": "conv2", "8": "cccp2"}
    named = {f"net.{ours[key.split('.')[0]]}.{key.split('.')[1]}": value for key, value in reversed(theirs.items())}
    like = imported.shapes(run(tmp_path))
    by_name = pytorch.to_variables(pytorch.tensors(save(named, tmp_path / "a.safetensors")), like)
    by_order = pytorch.to_variables(pytorch.tensors(save(theirs, tmp_path / "b.pth")), like)
    jax.tree.map(np.testing.assert_array_equal, by_name, by_order)


def test_batch_normalisation_and_a_fully_connected_head(tmp_path):
    """conv, norm, ReLU, then a matrix on flattened maps, whose rows PyTorch orders otherwise."""
    torch.manual_seed(1)
    net = nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 10, 1), nn.ReLU(), nn.Flatten(), nn.Linear(640, 10)),
    )
    for p in net.parameters():
        nn.init.normal_(p, 0, 0.5)
    with torch.no_grad():
        net(torch.randn(64, 1, 8, 8))  # moves the running mean and variance
    net.eval()
    ours = run(tmp_path, NORMALISED)
    found = {name: value.numpy() for name, value in net.state_dict().items()}
    variables = pytorch.to_variables({n: v for n, v in found.items() if v.size}, imported.shapes(ours))
    image = np.random.default_rng(0).standard_normal((3, 8, 8, 1)).astype(np.float32)
    logits, _ = jax.jit(lambda v, i: ours.model.apply(v, i, train=False))(variables, image)
    expected = net(torch.from_numpy(image.transpose(0, 3, 1, 2).copy())).detach().numpy()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


class Executed:
    """What unpickling calls."""

    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda d: d / "nowhere.pth", "no such file"),
        (lambda d: (torch.save({"0.weight": Executed()}, d / "bad.pth"), d / "bad.pth")[1], "no file of weights"),
        (lambda d: (d / "cut.safetensors").write_bytes(b"\x08" + bytes(20)) and d / "cut.safetensors", "or damaged"),
        (lambda d: save(dict(list(network().state_dict().items())[2:]), d / "few.pth"), "it has 3 layers"),
        (lambda d: save(nn.Sequential(*list(network())[:-4], nn.Conv2d(5, 9, 1)).state_dict(), d / "narrow.pth"), "cccp2"),
        (lambda d: save({k: v * torch.nan for k, v in network().state_dict().items()}, d / "nan.pth"), "not finite"),
    ],
    ids=["missing", "pickle", "damaged", "few", "narrow", "nan"],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(make, said, tmp_path, monkeypatch, capsys):
    """Exit 2, nothing executed, and no directory is made."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        pytorch.main(["pytorch", str(make(tmp_path)), "--workdir=run", experiment(tmp_path)])
    assert left.value.code == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()
    assert not Path("executed").exists()


def test_a_part_that_the_network_has_not(tmp_path):
    found = {name: value.numpy() for name, value in network().state_dict().items()}
    with pytest.raises(UserError, match="also has running_mean"):
        pytorch.to_variables(found | {"0.running_mean": np.zeros(4, np.float32)}, imported.shapes(run(tmp_path)))
