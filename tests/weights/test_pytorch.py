"""Networks written in PyTorch, their files as people have them, and what our networks make of the imported weights."""

from __future__ import annotations

import io
import json
import pickle
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import nin_jax
from nin_jax import main
from nin_jax.errors import UserError
from nin_jax.training.build import Run
from nin_jax.weights import imported, pytorch, torch_files
from nin_jax.weights.export import export
from tests.models.zoo import Case

torch = pytest.importorskip("torch", reason="PyTorch writes the files")
nn = torch.nn

SMALL = {"kernels": (3, 3), "widths": ((4, 3), (5,)), "pools": ("max",), "dropout_kind": "inverted"}
ALIKE = {"kernels": (3,), "widths": ((4, 4, 4, 4),), "pools": ()}  # three layers of the same shape
NORMALISED = {"kernels": (3,), "widths": ((4,),), "pools": (), "batch_norm": True, "head": "fc"}
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)


def words(folder: Path, model=SMALL, *more: str) -> list[str]:
    """The flags of an experiment on the digits, scaled to 0..1, with such a network."""
    file = folder / "small.py"
    file.write_text(f"""
from nin_jax.config import experiment

def get_config(arg=None):
    config = experiment("digits")
    with config.unlocked():
        config.model = {{"name": "nin"}} | {model}
        config.preprocess = ("scale(divisor=255)",)
    return config
""")
    return [f"--config={file}", f"--workdir={folder / 'run'}", *more]


def layers(*more: nn.Module) -> list[nn.Module]:
    return [*more, nn.AdaptiveAvgPool2d(1), nn.Flatten()]


def network(seed: int = 0) -> nn.Sequential:
    """The network SMALL, as a port would have it: layers by number, no names."""
    torch.manual_seed(seed)
    first = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.ReLU()
    second = nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 10, 1), nn.ReLU()
    return nn.Sequential(*layers(*first, nn.MaxPool2d(3, 2, ceil_mode=True), nn.Dropout(0.5), *second)).eval()


def alike(*names: str) -> nn.Sequential:
    """The network ALIKE, with these names of its three equal layers, in the order in which they compute."""
    torch.manual_seed(1)
    inner = [part for name in names for part in ((name, nn.Conv2d(4, 4, 1)), (f"relu_{name}", nn.ReLU()))]
    first, last = [("conv", nn.Conv2d(1, 4, 3, padding=1)), ("relu", nn.ReLU())], [("out", nn.Conv2d(4, 10, 1))]
    pooled = [("relu_out", nn.ReLU()), ("mean", nn.AdaptiveAvgPool2d(1)), ("flat", nn.Flatten())]
    net = nn.Sequential(OrderedDict([*first, *inner, *last, *pooled])).eval()
    for p in net.parameters():
        nn.init.normal_(p, 0.2, 0.5)
    return net


def logits_of(net: nn.Module) -> np.ndarray:
    return net(torch.from_numpy(IMAGES.transpose(0, 3, 1, 2) / np.float32(255))).detach().numpy()


def imported_run(file: Path, folder: Path, model=SMALL, *more: str):
    pytorch.main(["pytorch", str(file), *words(folder, model, *more)])
    return nin_jax.load_run(str(folder / "run"))


def same(ours: np.ndarray, theirs: np.ndarray, tolerance: float = 1e-5) -> None:
    assert np.abs(theirs).max() > 1e-3
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


def refused(file: Path, folder: Path, capsys, model=SMALL, *more: str) -> str:
    """The last line of an import with exit code 2, which left no directory."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        pytorch.main(["pytorch", str(file), *words(folder, model, *more)])
    assert left.value.code == 2
    err = capsys.readouterr().err
    lines = err.splitlines(keepends=True)
    assert [line for line in lines if line.startswith("nin_jax: ")] == lines[-1:]
    assert "\x1b" not in err
    assert not (folder / "run").exists()
    return lines[-1]


def saved(content, file: Path, **options) -> Path:
    torch.save(content, file, **options)
    return file


def safetensors(state, file: Path) -> Path:
    from safetensors.torch import save_file

    save_file(state, file)
    return file


def two_parts() -> nn.Module:
    net = network()
    return nn.Sequential(OrderedDict([("features", net[:4]), ("classifier", net[4:])]))


STATE = network().state_dict()
FILES = {
    "plain": lambda f: saved(STATE, f),
    "net": lambda f: saved({"net": STATE, "acc": 90.1, "epoch": 3}, f),
    "model and optimizer": lambda f: saved(
        {"model": STATE, "optimizer": torch.optim.SGD(network().parameters(), 0.1, 0.9).state_dict()}, f
    ),
    "model_state_dict": lambda f: saved({"epoch": 3, "model_state_dict": STATE}, f),
    "numpy scalars": lambda f: saved({"best": np.float64(90.1), "n": np.int64(3), "state_dict": STATE}, f),
    "arguments of a class": lambda f: saved({"args": Path("a"), "state_dict": STATE, "device": torch.device("cpu")}, f),
    "compiled and parallel": lambda f: saved({f"_orig_mod.module.{k}": v for k, v in STATE.items()}, f),
    "deep": lambda f: saved({"checkpoint": {"ema": {"module": STATE}}}, f),
    "features and classifier": lambda f: saved(two_parts().state_dict(), f),
    "stream": lambda f: saved({"state_dict": STATE}, f, _use_new_zipfile_serialization=False),
    "parameters": lambda f: saved({k: nn.Parameter(v) for k, v in STATE.items()}, f),
    "protocol 4": lambda f: saved(STATE, f, pickle_protocol=4),
    "channels last": lambda f: saved(network().to(memory_format=torch.channels_last).state_dict(), f),
    "views of one storage": lambda f: saved(dict(network().state_dict(), **_views()), f),
    "doubles": lambda f: saved({k: v.double() for k, v in STATE.items()}, f),
    "safetensors": lambda f: safetensors(STATE, f.with_suffix(".safetensors")),
    "safetensors of any name": lambda f: safetensors(STATE, f),
    "float64 safetensors": lambda f: safetensors({k: v.double() for k, v in STATE.items()}, f.with_suffix(".safetensors")),
}  # fmt: skip


def _views():
    """Two of the tensors of STATE as parts of one storage, the one of them transposed."""
    both = torch.cat([STATE["2.weight"].flatten(), STATE["8.weight"].permute(1, 0, 2, 3).flatten()])
    return {"2.weight": both[:12].view(3, 4, 1, 1), "8.weight": both[12:].view(5, 10, 1, 1).permute(1, 0, 2, 3)}


@pytest.mark.parametrize("kind", FILES)
def test_every_kind_of_file_gives_the_logits_of_pytorch(kind, tmp_path, monkeypatch):
    """From the file to a run directory to `load_run`, on images as they come; PyTorch is not asked, and nothing unpickled."""
    file = FILES[kind](tmp_path / "weights.pth")
    monkeypatch.setattr(torch, "load", None)
    monkeypatch.setattr(pickle, "Unpickler", None)
    run = imported_run(file, tmp_path)
    same(run(IMAGES)[0], logits_of(network()))
    source = json.loads((tmp_path / "run/source.json").read_text())
    assert (source["file"], source["bytes"]) == (file.name, file.stat().st_size)


@pytest.mark.parametrize("dtype", ["half", "bfloat16"])
@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_half_precision_is_read_as_it_is(dtype, ending, tmp_path):
    net = getattr(network(), dtype)()
    file = (saved if ending == ".pth" else safetensors)(net.state_dict(), tmp_path / f"w{ending}")
    same(imported_run(file, tmp_path)(IMAGES)[0], logits_of(net.float()))


def test_in_64_bit_mode_an_import_is_the_same(tmp_path):
    """Of doubles too: the checkpoint is one that is read without the mode."""
    with jax.enable_x64(True):
        imported_run(FILES["doubles"](tmp_path / "w.pth"), tmp_path)
    same(nin_jax.load_run(str(tmp_path / "run"))(IMAGES)[0], logits_of(network()))


def test_the_run_can_be_evaluated_and_the_mapping_is_printed(tmp_path, capsys):
    file = saved({f"module.features.{k}": v for k, v in STATE.items()}, tmp_path / "w.pth.tar")
    imported_run(file, tmp_path)
    assert (
        "module.features.0 -> conv1, module.features.2 -> cccp1, module.features.6 -> conv2, module.features.8 -> cccp2\n"
        in capsys.readouterr().err
    )
    main.run(main.parse(["nin_jax", *words(tmp_path), "--mode=eval"]))
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["step"] == 0


@pytest.mark.parametrize("names", [("mlp_one", "mlp_two", "mlp_three"), ("z", "m", "a"), ("l10", "l9", "l1")])
def test_layers_of_one_shape_keep_the_order_of_the_file(names, tmp_path):
    """The order in which the network created them, and never that of sorted names."""
    net = alike(*names)
    run = imported_run(saved(net.state_dict(), tmp_path / "w.pth"), tmp_path, ALIKE)
    same(run(IMAGES)[0], logits_of(net))


def test_layers_of_one_shape_in_a_file_without_order(tmp_path, capsys):
    """Refused with the mapping; a check with images and their logits decides whether the order of the names is right."""
    names = "layer2", "layer9", "layer10"
    net = alike(*names)
    file = safetensors(net.state_dict(), tmp_path / "w.safetensors")
    said = refused(file, tmp_path, capsys, ALIKE)
    for name in ("cccp1", "cccp2", "cccp3"):
        assert f"layer2 or layer9 or layer10 -> {name}" in said
    assert "conv -> conv1" in said
    assert "--check=FILE.npz" in said
    np.savez(tmp_path / "c.npz", images=IMAGES, logits=logits_of(net))
    same(imported_run(file, tmp_path, ALIKE, f"--check={tmp_path / 'c.npz'}")(IMAGES)[0], logits_of(net))

    file = safetensors(alike("one", "two", "three").state_dict(), tmp_path / "swapped.safetensors")
    np.savez(tmp_path / "c.npz", images=IMAGES, logits=logits_of(alike("one", "two", "three")))
    other = tmp_path / "other"
    other.mkdir()
    assert "the logits differ by" in refused(file, other, capsys, ALIKE, f"--check={tmp_path / 'c.npz'}")


def test_names_of_ours_count_more_than_the_order(tmp_path):
    """The authors' names in another order, one of them twice as deep."""
    ours = {"0": "conv1", "2": "cccp1", "6": "conv2", "8": "cccp2"}
    state = {f"net.{ours[key.split('.')[0]]}.{key.split('.')[1]}": value for key, value in reversed(STATE.items())}
    for i, write in enumerate((saved, safetensors)):
        folder = tmp_path / str(i)
        folder.mkdir()
        file = write(state, folder / ("w.pth", "w.safetensors")[i])
        same(imported_run(file, folder)(IMAGES)[0], logits_of(network()))


OTHER = network(1).state_dict()
SEVERAL = {
    "keys": ({"state_dict": STATE, "state_dict_ema": OTHER}, "state_dict", "state_dict_ema"),
    "names": ({**{f"s.{k}": v for k, v in STATE.items()}, **{f"t.net.{k}": v for k, v in OTHER.items()}}, "s", "t.net"),
    "names below a key": ({"state_dict": {f"{n}.{k}": v for n, s in (("model", STATE), ("ema", OTHER)) for k, v in s.items()}},
                          "model", "ema"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SEVERAL)
def test_of_several_networks_one_is_named(kind, tmp_path, capsys):
    content, *prefixes = SEVERAL[kind]
    file = saved(content, tmp_path / "w.pth")
    said = refused(file, tmp_path, capsys)
    for prefix, net in zip(prefixes, (network(), network(1)), strict=True):
        assert prefix in said
        folder = tmp_path / prefix
        folder.mkdir()
        same(imported_run(file, folder, SMALL, f"--prefix={prefix}")(IMAGES)[0], logits_of(net))
    assert f"--prefix={prefixes[0]}" in said
    assert "did you mean" in refused(file, tmp_path, capsys, SMALL, f"--prefix={prefixes[1]}x")


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
    for i, write in enumerate((saved, safetensors)):
        folder = tmp_path / str(i)
        folder.mkdir()
        file = write(net.state_dict(), folder / ("w.pth", "w.safetensors")[i])
        same(imported_run(file, folder, NORMALISED)(IMAGES)[0], logits_of(net), 2e-5)


class Maxout(nn.Module):
    """The largest of the pieces of each map: piece m of map k is filter m * maps + k, or k * pieces + m."""

    def __init__(self, pieces: int, *, maps_first: bool = False):
        super().__init__()
        self.sizes, self.axis = ((-1, pieces), 2) if maps_first else ((pieces, -1), 1)

    def forward(self, x):
        return x.unflatten(1, self.sizes).amax(self.axis)


def maxout_network(model, *, maps_first: bool = False) -> nn.Module:
    """The maxout network that the arguments describe, after the digits' images of 8 x 8."""
    torch.manual_seed(2)
    parts, channels, side = [], 1, 8
    for width, pieces in zip(model["widths"], model["pieces"], strict=True):
        parts += [nn.Conv2d(channels, width * pieces, 3, padding=1), Maxout(pieces, maps_first=maps_first)]
        parts += [nn.MaxPool2d(2, 2)]
        channels, side = width, side // 2
    parts += [nn.Flatten()]
    rows = channels * side**2
    if units := model["dense_width"]:
        pieces = model["dense_pieces"]
        parts += [nn.Linear(rows, units * pieces), Maxout(pieces, maps_first=maps_first)]
        rows = units
    return nn.Sequential(*parts, nn.Linear(rows, 10)).eval()


MAXOUT = {"name": "maxout", "widths": (4, 3), "pieces": (2, 2), "kernels": (3, 3), "pads": (1, 1), "pools": (2, 2)}
MAXOUTS = {
    "dense maxout layer": {**MAXOUT, "dense_width": 7, "dense_pieces": 5},
    "square dense maxout layer": {**MAXOUT, "dense_width": 10, "dense_pieces": 3},
    "no dense layer": {**MAXOUT, "dense_width": 0},
    "three pieces of maps": {**MAXOUT, "widths": (4, 5), "pieces": (2, 3), "dense_width": 0},
}


@pytest.mark.parametrize("kind", MAXOUTS)
def test_maxout_layers_before_a_matrix_on_flattened_maps(kind, tmp_path):
    """The rows of the matrix go by map; the layer before has several filters for each."""
    model = MAXOUTS[kind]
    net = maxout_network(model)
    np.savez(tmp_path / "c.npz", images=IMAGES, logits=logits_of(net))
    file = saved(net.state_dict(), tmp_path / "w.pth")
    same(imported_run(file, tmp_path, model, f"--check={tmp_path / 'c.npz'}")(IMAGES)[0], logits_of(net))


LOCAL = {"name": "convnet", "widths": (4,), "pools": ("max",), "head": "fc", "local_maps": 3}


def local_state() -> dict[str, Any]:
    """Weights of the network LOCAL, with its unshared layer as PyTorch would number filters: by map first."""
    conv, local, fc = nn.Conv2d(1, 4, 5), nn.Conv2d(4, 3 * 4 * 4, 3), nn.Linear(3 * 4 * 4, 10)
    named = {"conv1": conv, "local": local, "fc": fc}
    state = {f"{name}.{part}": value for name, one in named.items() for part, value in one.state_dict().items()}
    return {**state, "local.bias": state["local.bias"].reshape(4, 4, 3)}


UNSAID = {
    "a convolution": ({**MAXOUT, "dense_width": 0}, "0", "h0", "8 filters for 4 maps"),
    "a dense layer": ({**MAXOUT, "pieces": (1, 1), "dense_width": 7, "dense_pieces": 5}, "7", "h2", "35 filters for 7 units"),
    "an unshared layer": (LOCAL, "local", "local", "48 filters for 3 maps"),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNSAID)
def test_what_a_file_does_not_say_of_the_order_of_filters(kind, tmp_path, capsys):
    """Which filters are pieces of one map: only logits tell."""
    model, theirs, mine, filters = UNSAID[kind]
    state = local_state() if model is LOCAL else maxout_network(model).state_dict()
    said = refused(saved(state, tmp_path / "w.pth"), tmp_path, capsys, model)
    assert f"layer {theirs!r}, matched with {mine!r}, has {filters}, and the file does not say their order" in said
    assert "add --check=FILE.npz with images and their logits" in said


def test_pieces_in_another_order_are_refused_by_the_check(tmp_path, capsys):
    model = MAXOUTS["no dense layer"]
    net = maxout_network(model, maps_first=True)
    np.savez(tmp_path / "c.npz", images=IMAGES, logits=logits_of(net))
    file = saved(net.state_dict(), tmp_path / "w.pth")
    assert "the logits differ by" in refused(file, tmp_path, capsys, model, f"--check={tmp_path / 'c.npz'}")


def test_one_piece_has_no_order(tmp_path):
    model = {**MAXOUT, "pieces": (1, 1), "dense_width": 7, "dense_pieces": 1}
    net = maxout_network(model)
    same(imported_run(saved(net.state_dict(), tmp_path / "w.pth"), tmp_path, model)(IMAGES)[0], logits_of(net))


CHECKS = {
    "images": lambda x, y: {"images": x, "logits": y},
    "channels first": lambda x, y: {"x": x.transpose(0, 3, 1, 2), "logits": y},
    "one image": lambda x, y: {"image": x[0, ..., 0], "logits": y[0]},
    "inputs": lambda x, y: {"inputs": x.transpose(0, 3, 1, 2) / np.float32(255), "logits": y.astype(np.float64)},
}


@pytest.mark.parametrize("kind", CHECKS)
def test_the_check_compares_logits(kind, tmp_path, capsys):
    file, check, logits = saved(STATE, tmp_path / "w.pth"), tmp_path / "c.npz", logits_of(network())
    np.savez(check, **CHECKS[kind](IMAGES, 1.01 * logits))
    assert "the logits differ by 0.0099 of the largest" in refused(file, tmp_path, capsys, SMALL, f"--check={check}")
    np.savez(check, **CHECKS[kind](IMAGES, logits))
    imported_run(file, tmp_path, SMALL, f"--check={check}")
    assert "images agree to" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [None, {"images": IMAGES}, {"images": IMAGES[:, :7], "logits": np.zeros((5, 10))}, {"images": IMAGES, "logits": np.ones(9)},
     {"images": np.array([None]), "logits": np.zeros((1, 10))}, {"images": IMAGES[:0], "logits": np.zeros((0, 10))}],
    ids=["missing", "no logits", "small images", "nine classes", "objects", "empty"],
)  # fmt: skip
def test_a_check_that_cannot_be_made(content, tmp_path, capsys):
    if content is not None:
        np.savez(tmp_path / "c.npz", **content)
    said = refused(saved(STATE, tmp_path / "w.pth"), tmp_path, capsys, SMALL, f"--check={tmp_path / 'c.npz'}")
    assert "c.npz: must hold 'logits'" in said


class Executed:
    """What unpickling calls."""

    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def script(folder: Path) -> Path:
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        torch.jit.trace(network(), torch.zeros(1, 1, 8, 8)).save(folder / "script.pt")
    return folder / "script.pt"


def cut(folder: Path) -> Path:
    file = saved(STATE, folder / "cut.pth")
    file.write_bytes(file.read_bytes()[:-700])
    return file


def zipped(folder: Path) -> Path:
    """A storage that is compressed to a thousandth."""
    import zipfile

    file = saved({"0.weight": torch.zeros(10**7)}, folder / "bomb.pth")
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(folder / "b.pth", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return folder / "b.pth"


def damaged(folder: Path) -> Path:
    (folder / "d.safetensors").write_bytes(b"\x08" + bytes(20))
    return folder / "d.safetensors"


def listed(folder: Path) -> Path:
    return saved(list(network().parameters()), folder / "list.pth")


REMEDY = "save its weights alone, torch.save(model.state_dict(), 'weights.pth'), and import that file"
HALF = {k: v for k, v in STATE.items() if k != "0.bias"}
REFUSED = {
    "missing": (lambda d: d / "nowhere.pth", "no such file"),
    "whole module": (lambda d: saved(network(), d / "w.pth"), f"it holds a whole module (torch.nn.modules.container.Sequential), which only its own code can rebuild; {REMEDY}\n"),
    "module under a key": (lambda d: saved({"net": network()}, d / "w.pth"), f"only its own code can rebuild; {REMEDY}\n"),
    "module in a stream": (lambda d: saved(network(), d / "w.pth", _use_new_zipfile_serialization=False), REMEDY),
    "script": (script, "it is a TorchScript program; save its weights alone, torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth'), and import that file\n"),
    "list of parameters": (listed, "no state dict"),
    "a call": (lambda d: saved({"0.weight": Executed()}, d / "w.pth"), "(__builtin__.getattr)"),
    "pickle": (lambda d: (d / "w.pth").write_bytes(pickle.dumps(Executed())) and d / "w.pth", "torch.save did not write"),
    "damaged": (damaged, "or is damaged"),
    "cut": (cut, "or is damaged"),
    "bomb": (zipped, "is compressed"),
    "few": (lambda d: saved(dict(list(STATE.items())[2:]), d / "w.pth"), "it has 3 layers (2, 6, 8), and the network 4 (conv1, cccp1, conv2, cccp2)\n"),
    "more": (lambda d: saved({**STATE, "9.weight": torch.ones(3)}, d / "w.pth"), "it has 5 layers"),
    "narrow": (lambda d: saved({**STATE, "8.weight": torch.ones(9, 5, 1, 1)}, d / "w.pth"), "matched with 'cccp2': weight is (9, 5, 1, 1), ours (1, 1, 5, 10)"),
    "narrow, without order": (lambda d: safetensors({**STATE, "8.weight": torch.ones(9, 5, 1, 1)}, d / "w.safetensors"), "no layer of the shape of cccp2; it has 0 (4, 1, 3, 3)"),
    "no bias": (lambda d: saved(HALF, d / "w.pth"), "layer '0', matched with 'conv1', has weight, and ours bias, weight"),
    "another part": (lambda d: saved({**STATE, "0.running_mean": torch.ones(4)}, d / "w.pth"), "has bias, running_mean, weight, and"),
    "unknown numbers": (lambda d: saved({**STATE, "0.scale": torch.ones(1)}, d / "w.pth"), "it has what no layer of ours has: 0.scale\n"),
    "an object": (lambda d: saved({**STATE, "0.weight": np.ones(3)}, d / "w.pth"), "it has what no layer of ours has: 0.weight\n"),
    "whole numbers": (
        lambda d: saved({**STATE, "0.weight": STATE["0.weight"].char()}, d / "w.pth"),
        "it has what no layer of ours has: 0.weight\n",
    ),
    "nan": (lambda d: saved({k: v * torch.nan for k, v in STATE.items()}, d / "w.pth"), "not finite"),
    "names for a terminal": (lambda d: saved({f"\x1b[31m{k}": v for k, v in HALF.items()}, d / "w.pth"), r"layer '\x1b[31m0'"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_does_not_fit_is_one_whole_line(kind, tmp_path, monkeypatch, capsys):
    """Exit 2, the remedy where there is one, nothing executed, and no directory is made."""
    monkeypatch.chdir(tmp_path)
    make, said = REFUSED[kind]
    assert said in refused(make(tmp_path), tmp_path, capsys)
    assert not Path("executed").exists()


def test_any_damage_is_noticed_or_harmless(tmp_path):
    """Cut, or a byte changed, in files of all three formats: an error of one line, or numbers of the right shapes."""
    run = Run(main.parse(["nin_jax", *words(tmp_path)]).config)
    like = imported.shapes(run.model, run.info.image_shape)
    files = [FILES[kind](tmp_path / f"{i}.pth") for i, kind in enumerate(("plain", "stream", "safetensors"))]
    rng, refusals, accepted = np.random.default_rng(0), 0, 0
    for file in files:
        good = file.read_bytes()
        for i in range(100):
            content = bytearray(good)
            place = int(rng.integers(len(good) if i % 2 else min(len(good), 1500)))
            if i % 4 == 3:
                del content[place:]
            else:
                content[place] ^= 1 << int(rng.integers(8))
            file.write_bytes(content)
            try:
                variables = pytorch.read(file, like, {})
            except UserError as error:
                refusals += "\n" not in str(error)
            else:
                accepted += 1
                jax.tree.map(
                    lambda a, b: np.testing.assert_equal(a.shape, b.shape), variables["params"], like["params"]
                )
    assert refusals + accepted == 300
    assert refusals > 100


def test_memory_stays_in_proportion(tmp_path):
    """A tensor as large as a hostile file says, made of one number."""
    small = torch.ones(1).expand(10**5, 10**5)
    with pytest.raises(ValueError, match="in 1 numbers"):
        torch_files.read(saved({"0.weight": small}, tmp_path / "w.pth"))


NAME = b"X" + (10**6).to_bytes(4, "little") + b"x" * 10**6 + b"q\0"
ITEMS = b"(" + b"".join(b"J" + i.to_bytes(4, "little") + b"K\1" for i in range(10**5)) + b"dq\0"
BOMBS = {  # by a thousand copies of what stands there once
    "names": NAME + b"(" + b"h\0h\0\x93" * 1000 + b"l.",
    "dicts": b"ccollections\nOrderedDict\nq\1" + ITEMS + b"(" + b"h\1h\0\x85R" * 1000 + b"l.",
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_short_pickle_does_not_fill_the_memory(kind):
    with pytest.raises(ValueError, match="its pickle copies more than"):
        torch_files.Pickle(io.BytesIO(b"\x80\4" + BOMBS[kind]), lambda storage: np.zeros(0))


def test_no_entry_unpacks_to_more_than_it_takes_in_the_file(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl", b"")
        archive.writestr("w/byteorder", b"little" * 10**6)
    with pytest.raises(ValueError, match="byteorder has 6000000 bytes"):
        torch_files.read(tmp_path / "w.pth")


def test_a_state_dict_is_that_of_the_same_network_in_pytorch(tmp_path):
    """NORMALISED, written without PyTorch, loads into PyTorch's own layers."""
    from safetensors.torch import load_file

    case = Case("nin", NORMALISED, side=6)
    model, images = case.create(), case.images(7)
    variables = case.variables(model)
    layers = {
        "conv1": nn.Conv2d(3, 4, 3, padding=1, bias=False),
        "conv1_norm": nn.BatchNorm2d(4),
        "relu1": nn.ReLU(),
        "cccp1": nn.Conv2d(4, 4, 1),
        "relu2": nn.ReLU(),
        "flat": nn.Flatten(),
        "fc": nn.Linear(4 * 6 * 6, 4),
    }
    theirs = nn.Sequential(OrderedDict(layers)).eval()
    state = load_file(export((model, variables, (6, 6, 3)), "pytorch", tmp_path / "state.safetensors"))
    left = theirs.load_state_dict(state, strict=False)
    assert (left.missing_keys, left.unexpected_keys) == ([], [])
    there = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2))).detach().numpy()
    same(np.asarray(model.apply(variables, images, train=False)[0]), there)
