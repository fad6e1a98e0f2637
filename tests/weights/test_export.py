"""What exported files hold, and that other runtimes make the same logits of them: onnxruntime, `jax.export`, PyTorch."""

from __future__ import annotations

import collections
import functools
import io
import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file

import nin_jax
from nin_jax import registry
from nin_jax.data import fitted
from nin_jax.data.datasets import digits
from nin_jax.errors import UserError
from nin_jax.training.state import init_variables
from nin_jax.weights import onnx, pytorch, stablehlo
from nin_jax.weights.export import FORMATS, export
from nin_jax.weights.imported import shapes
from nin_jax.weights.network import Network
from tests.models.zoo import CASES, NAMES, NIN, Case

DOC = Path(__file__).parents[2] / "docs/export.md"

# Every model and head at full size, on the images that it was made for.
IMAGENET = ("nin_imagenet", "zfnet", "network_in_zfnet", "alexnet")
HEADS = ({"head": "gap"}, {"head": "fc"}, {"head": "fc_dropout"})
FULL = [
    *(Case("nin", head, 32) for head in (*HEADS, {"batch_norm": True}, {"pools": ("avg", "avg")})),
    *(Case("convnet", head, 32) for head in HEADS),
    *(Case(model, {}, 32) for model in ("maxout", "stochastic_pooling")),
    *(Case(model, head, 224) for model in IMAGENET for head in HEADS[::2]),  # without dropout "fc" is "fc_dropout"
]


def network_of(case: Case) -> Network:
    model = case.create()
    return Network.of((model, case.variables(model), case.shape))


def onnx_session(network: Network, maps: tuple[str, ...] = ()) -> Any:
    """onnxruntime's session of a network, whose file ONNX's own checker accepts."""
    checker = pytest.importorskip("onnx.checker")
    runtime = pytest.importorskip("onnxruntime")
    model = onnx.to_model(network, maps)
    checker.check_model(model, full_check=True)
    return runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def same(there: Any, here: np.ndarray, tolerance: float = 1e-5) -> None:
    """To 1e-5 of the largest logit, of images whose logits differ from each other."""
    assert np.ptp(here, axis=0).max() > 1e-3 * np.abs(here).max()
    np.testing.assert_allclose(there, here[: len(there)], rtol=0, atol=tolerance * np.abs(here).max())


def check(case: Case) -> None:
    """ONNX and StableHLO at batches of 1 and 7 give the logits of the model as it computes here."""
    network, images = network_of(case), case.images(7)
    call = functools.partial(network.model.apply, train=False)
    here = np.asarray(jax.jit(lambda v, x: call(v, x)[0])(network.variables, images))
    session = onnx_session(network)
    exported = stablehlo.to_exported(network, weights=False)
    numbers = network.folded().numbers
    for size in (1, 7):
        same(session.run(["logits"], {"images": images[:size]})[0], here)
        same(exported.call(numbers, images[:size])["logits"], here)


COVERED = "nin", "nin, fc"  # their layers and heads are in other networks too


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in COVERED else n for n in NAMES])
def test_onnx_and_stablehlo_give_the_logits_of_every_model_and_head(name):
    check(CASES[name])


@pytest.mark.slow
@pytest.mark.parametrize("case", FULL, ids=lambda case: f"{case.model}, {case.arguments}")
def test_so_they_do_at_full_size(case):
    check(case)


def test_the_graph_is_what_an_onnx_user_expects():
    """Layers are Conv with their names, pools MaxPool, batch norm is folded; nothing is left of slices and padding."""
    pytest.importorskip("onnx")
    model = onnx.to_model(network_of(CASES["nin, batch_norm"]), ["class_maps"])
    counts = collections.Counter(node.op_type for node in model.graph.node)
    del counts["Transpose"], counts["Identity"]
    assert counts == {"Conv": 9, "Relu": 8, "MaxPool": 2, "Mul": 2, "ReduceMean": 1}
    assert {"mlpconv1/conv1/kernel", "mlpconv3/cccp6/bias"} <= {tensor.name for tensor in model.graph.initializer}
    (images,) = model.graph.input
    assert [axis.dim_param or axis.dim_value for axis in images.type.tensor_type.shape.dim] == ["batch", 16, 16, 3]
    shape = [axis.dim_param or axis.dim_value for axis in model.graph.output[1].type.tensor_type.shape.dim]
    assert (model.graph.output[1].name, shape) == ("class_maps", ["batch", 4, 4, 4])


@pytest.mark.parametrize("ops", [("lcn()", "bgr()", "mean()", "scale()"), ("gcn(scale=55)", "zca(eps=0.1)")], ids=str)
def test_preprocessing_is_inside(ops, tmp_path):
    """Files take uint8 and say their classes; maps lie as here, channels last."""
    case = Case("nin", NIN, 8)
    raw = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    calls = registry.calls("preprocess", ops)
    network = network_of(case)._replace(preprocess=calls, stats=fitted.fit(calls, raw), class_names=tuple("abcd"))
    images = raw[:7]
    here = jax.jit(functools.partial(network, maps=("class_maps",)))(network.numbers, images)
    session = onnx_session(network, ("class_maps",))
    assert json.loads(session.get_modelmeta().custom_metadata_map["class_names"]) == list("abcd")
    file = export(network, "stablehlo", tmp_path / "nin.stablehlo", maps=["class_maps"])
    exported = jax.export.deserialize(bytearray(file.read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    logits, maps = session.run(["logits", "class_maps"], {"images": images})
    there = exported.call(images)
    for got, name in ((logits, "logits"), (maps, "class_maps"), (there["logits"], "logits")):
        same(got, np.asarray(here[name]))


def test_safetensors_hold_every_number_by_its_path(tmp_path):
    network = network_of(CASES["nin, batch_norm"])
    calls = registry.calls("preprocess", ("mean(per='channel')",))
    network = network._replace(preprocess=calls, stats=[{"mean": np.float32([1, 2, 3])}], class_names=tuple("abcd"))
    tensors = load_file(export(network, "safetensors", tmp_path / "nin.safetensors"))
    wanted: Any = flatten_dict(network.variables, sep="/")
    assert tensors.keys() == {*wanted, "preprocess/0/mean"}
    for name, number in wanted.items():
        np.testing.assert_array_equal(tensors[name], number)
    with safe_open(tmp_path / "nin.safetensors", "np") as opened:
        assert json.loads(opened.metadata()["preprocess"]) == ["mean(per='channel')"]
    bare = load_file(export(network, "safetensors", tmp_path / "bare.safetensors", preprocessing=False))
    assert bare.keys() == wanted.keys()


@pytest.mark.parametrize("name", ["nin, batch_norm", "nin, fc", "network_in_zfnet", "maxout", "convnet, fc"])
def test_a_state_dict_is_imported_again_to_the_last_bit(name, tmp_path):
    network = network_of(CASES[name])
    file = export(network, "pytorch", tmp_path / "state.safetensors")
    again = pytorch.read(file, shapes(network.model, network.image_shape), {})
    jax.tree.map(np.testing.assert_array_equal, again, network.variables)


class Strange(nn.Module):
    """A network with an operation that the exporter does not know."""

    num_classes: int = 4

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        del train
        return nn.Dense(4)(jnp.sort(image.reshape(image.shape[0], -1), axis=-1)), {}


@pytest.mark.parametrize(
    ("format", "arguments", "said"),
    [
        ("onxx", {}, "format='onxx': did you mean 'onnx'? (valid: onnx, pytorch, safetensors, stablehlo)"),
        ("onnx", {}, "the network cannot be written as ONNX: operation 'sort' of Strange has no translation"),
        ("stablehlo", {"maps": ["pool1"]}, "maps: no map 'pool1': (valid: )"),
        ("safetensors", {"maps": ["pool1"]}, "maps=('pool1',): a file of weights has no outputs"),
    ],
)
def test_a_users_mistake_is_named(format, arguments, said, tmp_path):
    model = Strange()
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), np.zeros((1, 2, 2, 1), np.float32), train=False))
    variables = jax.tree.map(lambda p: np.ones(p.shape, p.dtype), shapes)
    with pytest.raises(UserError, match=re.escape(said)):
        export((model, variables, (2, 2, 1)), format, tmp_path / "file", **arguments)
    assert not list(tmp_path.iterdir())


def test_a_missing_library_or_folder_is_named(tmp_path, monkeypatch):
    network = network_of(CASES["nin"])
    with pytest.raises(UserError, match="there is no folder"):
        export(network, "safetensors", tmp_path / "nowhere" / "file")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=re.escape('python -m pip install "nin_jax[onnx]"')):
        export(network, "onnx", tmp_path / "file")


def test_the_sizes_of_the_docs_are_those_of_the_files():
    pytest.importorskip("onnx")
    model = registry.create("nin", 10)
    shapes = jax.eval_shape(lambda: init_variables(model, 0, (32, 32, 3)))
    rng = np.random.default_rng(0)  # equal numbers would be compressed
    variables = jax.tree.map(lambda p: rng.standard_normal(p.shape, np.float32), shapes)
    network = Network.of((model, variables, (32, 32, 3)))
    found = {f"`{name}`": len(to_bytes(network, ())) for name, to_bytes in FORMATS.items()}
    bare = stablehlo.to_exported(network, weights=False).serialize()
    found["`stablehlo` without weights, `stablehlo.to_exported(network, weights=False)`"] = len(bare)
    table = dict(re.findall(r"^\| (`.+`) \| ([\d.]+) \|$", DOC.read_text(), re.MULTILINE))
    assert table.keys() == found.keys()
    for name, size in found.items():
        np.testing.assert_allclose(float(table[name]), size / 1e6, rtol=0.01, atol=0.005, err_msg=name)


@pytest.fixture
def server(tmp_path, clean_env) -> Iterator[str]:
    """The address of docs/export.md's server of nin.digits, in a process that can import neither JAX nor this package."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    export(nin_jax.load("nin.digits"), "onnx", tmp_path / "digits.onnx")
    script = re.search(r'^```py\n("""python serve.py.*?)^```$', DOC.read_text(), re.DOTALL | re.MULTILINE)
    assert script
    (tmp_path / "serve.py").write_text(script[1])
    (tmp_path / "without").mkdir()
    for name in ("jax", "flax", "nin_jax", "onnx"):
        (tmp_path / "without" / f"{name}.py").write_text("raise ImportError('not here')")
    command = [sys.executable, str(tmp_path / "serve.py"), str(tmp_path / "digits.onnx"), "0"]
    env = clean_env | {"PYTHONPATH": str(tmp_path / "without")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, cwd=tmp_path) as process:
        assert process.stdout
        yield process.stdout.readline().strip()
        process.terminate()


def post(address: str, content: bytes) -> Any:
    with urllib.request.urlopen(address, content) as answer:
        return json.load(answer)


def test_the_server_of_the_docs_answers_without_jax(server, tmp_path):
    """As `classify` does; what is no picture is refused, and the next one is answered."""
    images, _ = digits.load("test[:3]")
    for image, here in zip(images, nin_jax.load("nin.digits").classify(images), strict=True):
        content = io.BytesIO()
        Image.fromarray(image[..., 0]).save(content, "PNG")
        there = post(server, content.getvalue())
        assert [guess["name"] for guess in there] == [guess.name for guess in here.top]
        np.testing.assert_allclose([g["probability"] for g in there], [g.probability for g in here.top], atol=1e-5)
        with pytest.raises(urllib.error.HTTPError, match="400"):
            post(server, b"no picture")
