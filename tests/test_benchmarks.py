"""The measurements measure what they say: turns, ratios, bytes, and the same network on both sides."""

from __future__ import annotations

import json
import math
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from benchmarks import measure, pictures, scaling
from benchmarks.runs import on_noise
from nin_jax.data import fitted
from nin_jax.paper import detection


def test_sides_take_turns_and_the_ratio_is_that_of_the_medians():
    calls = []
    sides = {name: lambda name=name: calls.append(name) for name in "ab"}
    row = measure.alternate(sides, rounds=3, units=2)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert all(len(s) == 3 for s in row["seconds"].values())
    row = {"seconds": {"a": [2.0, 4.0, 9.0], "b": [1.0, 4.0, 3.0]}, "median": {"a": 4.0, "b": 3.0}}
    assert measure.ratio(row, "a", "b") == (4 / 3, 1.0, 3.0)


def test_the_model_of_an_all_reduce():
    """On 2 devices each byte crosses the link once each way; on 16 the second ring is between two hosts."""
    _, size = scaling.compiled("cuda:h100")
    inside, between, hop, _ = scaling.LINKS["cuda:h100"]
    sums = {n: scaling.model("cuda:h100", 128, n)[1] for n in (1, 2, 8, 16)}
    assert sums[1] == 0
    assert sums[2] == pytest.approx(size / inside + 2 * hop)
    assert sums[16] - sums[8] == pytest.approx(size / 8 / between + 2 * hop)
    assert scaling.LINKS["tpu:v5e"].group(256) == 16


@pytest.mark.slow
def test_answers_are_measured_and_shown(tmp_path, monkeypatch):
    """Of whole pictures; what is held grows by less than a MiB over the last 200 of 300."""
    for i in range(3):
        Image.new("L", (8 + i, 8), 80 * i).save(tmp_path / f"{i}.png")
    monkeypatch.setattr(pictures, "RECORD", tmp_path / "record.json")
    monkeypatch.setattr(sys, "argv", ["pictures", "digits", str(tmp_path), "--model=nin.digits", "--count=300"])
    pictures.main()
    row = json.loads((tmp_path / "record.json").read_text())["digits"]
    assert (row["pictures"], row["hypotheses"]) == ([300, 3], 0)
    assert row["peak_mib"] >= row["last_mib"] > 100
    assert row["last_mib"] - row["second_mib"] <= 1
    assert "| `digits` | 0 |" in detection.generated([], {}, {"digits": row})["Answers"]


@pytest.mark.parametrize("kind", scaling.LINKS)
def test_the_models_compute_is_that_of_the_compiled_updates(kind):
    """At their sizes, in between, and beyond; so one device keeps all of its speed, and more lose some."""
    points, _ = scaling.compiled(kind)
    (small, least), (large, longest) = points[0], points[-1]
    for images, seconds in points:
        assert scaling.model(kind, images, 1)[0] == pytest.approx(seconds)
    assert scaling.model(kind, small / 2, 1)[0] == pytest.approx(least)
    assert scaling.model(kind, 2 * large, 1)[0] == pytest.approx(2 * longest)
    assert scaling.efficiency(kind, 128, 1, 128) == 1 > scaling.efficiency(kind, 128, 8, 128)


def test_operations_and_bytes_are_those_of_the_network():
    """By hand from the layers of CIFAR-10's network: the gradient by the picture is not computed; ZCA is a product."""
    layers = [(32, 5, 3, 192), (32, 1, 192, 160), (32, 1, 160, 96), (16, 5, 96, 192), (16, 1, 192, 192)]
    layers += [(16, 1, 192, 192), (8, 3, 192, 192), (8, 1, 192, 192), (8, 1, 192, 10)]
    products = [side**2 * size**2 * a * b for side, size, a, b in layers]
    numbers = sum(size**2 * a * b + b for _, size, a, b in layers)
    rows = [r for r in measure.read("accelerators")["rows"] if not r["textbook"]]
    for row in rows:
        devices = math.prod(int(n) for n in row["target"].split(":")[-1].split("x"))
        training = 3 * sum(products) - products[0] if row["what"] == "update" else sum(products)
        assert row["operations"] == 2 * (row["batch_size"] // devices) * (training + 3072**2)
        if row["what"] == "update" and devices > 1:  # gradients, two means; the extremes of each class's logits
            assert row["collectives"] == [["all-reduce", 4 * (numbers + 2)], ["all-reduce", 4 * 20]]
            assert row["donated"] == row["state"]
        assert row["float64"] == 0
        assert row["data_set_copies"] == []


NETWORKS = {
    "digits": {
        "model.widths": ((8, 6), (8,)),
        "model.dropout": 0.0,
        "model.relu_on_class_maps": True,
        "optimizer.learning_rate_factors": ("cccp2/=0.1", "bias=2"),
    },
    "imagenet": {
        "dataset": "synthetic(size=64,classes=10)",
        "augment": (),
        "model.layers": (
            "mlpconv(maps=(8, 6), size=11, stride=4, pad=0)",
            "max_pool()",
            "mlpconv(maps=(8,), size=5)",
            "max_pool()",
            "dropout(rate=0.0)",
            "mlpconv(maps=(8, 6), size=3)",
        ),
    },
}


@pytest.mark.parametrize("name", NETWORKS)
def test_pytorchs_network_is_ours(name: str):
    """Same loss with the same weights, and after one update, dropout aside, the same parameters."""
    torch = pytest.importorskip("torch", reason="PyTorch is the other side")
    from benchmarks.torch_nin import Setting, Trainer, network

    ours = on_noise(name, 32, examples=32, **NETWORKS[name])
    shape, params = ours.run.info.image_shape, jax.tree.map(np.asarray, ours.state.params)
    images, labels = ours.split
    image = np.array(fitted.apply(ours.recipe.preprocess, ours.stats, jax.numpy.asarray(images)))
    image, label = torch.from_numpy(image.transpose(0, 3, 1, 2).copy()), torch.from_numpy(np.int64(labels))
    for setting in (Setting(), Setting(channels_last=True)):
        theirs = Trainer(network(ours.recipe.model, params, shape[-1], setting), ours.config, setting)
        assert theirs.evaluate(image, label) == pytest.approx(ours.evaluate()["loss"], rel=1e-5)
        theirs.update(image, label)
    ours.update()
    for (block, name), conv in theirs.model.convolutions.items():
        mine = ours.state.params[block][name]
        kernel = conv.weight.detach().numpy().transpose(2, 3, 1, 0)
        np.testing.assert_allclose(mine["kernel"], kernel, rtol=0, atol=1e-6)
        np.testing.assert_allclose(mine["bias"], conv.bias.detach().numpy(), rtol=0, atol=1e-6)
        assert np.abs(kernel - params[block][name]["kernel"]).max() > 1e-5
