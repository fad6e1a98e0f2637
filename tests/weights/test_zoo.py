"""The names that timm's users know."""

from __future__ import annotations

import dataclasses
import functools
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict

import nin_jax
from nin_jax import registry
from nin_jax.data.datasets import digits
from nin_jax.errors import UserError
from nin_jax.models._features import Features, levels
from tests.models.zoo import CASES


@functools.partial(jax.jit, static_argnums=0)
def apply(model, variables, image):
    return model.apply(variables, image, train=False)


def test_importing_and_listing_need_no_jax(clean_env):
    code = """if True:
        import sys, nin_jax
        assert "nin.digits" in nin_jax.list_pretrained() and "nin" in nin_jax.list_models()
        print({"jax", "flax", "numpy", "PIL", "safetensors"} & set(sys.modules))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean_env, check=True)
    assert done.stdout == "set()\n"


def test_patterns_choose_models():
    assert nin_jax.list_models("nin*") == ["nin", "nin_imagenet"]
    assert nin_jax.list_models("*.digits", pretrained=True) == ["nin.digits"]
    assert set(nin_jax.list_pretrained()) == set(nin_jax.list_models(pretrained=True))


def test_a_trained_model_gives_the_logits_of_its_classifier():
    images, _ = digits.load("test[:4]")
    model, variables = nin_jax.create_model("nin.digits", pretrained=True)
    transform = nin_jax.create_transform(**nin_jax.resolve_model_data_config("nin.digits"))
    logits, _ = apply(model, variables, np.stack([transform(image) for image in images]))
    np.testing.assert_allclose(logits, nin_jax.load("nin.digits").logits(images), rtol=1e-5, atol=1e-4)


def test_a_transform_is_not_made_where_pictures_become_images_in_another_way():
    """VOC's are scaled whole, and HCP's are regions: the middle of a picture would be something else."""
    network = nin_jax.load("nin.cifar10")
    network.config = dataclasses.replace(network.config, dataset=registry.call("datasets", "voc(size=32)"))
    with pytest.raises(UserError, match=r"dataset voc\(size=32\) makes images of pictures in a way of its own"):
        nin_jax.resolve_model_data_config(network)


def test_without_classes_a_model_gives_what_its_classifier_sees():
    """The classes of nin.digits are a linear layer at each position, so logits are that layer of the mean of the maps."""
    image = np.random.default_rng(0).random((2, 8, 8, 1), np.float32)
    model, variables = nin_jax.create_model("nin.digits", pretrained=True)
    logits, _ = apply(model, variables, image)
    headless, fewer = nin_jax.create_model("nin.digits", pretrained=True, num_classes=0)
    features, maps = apply(headless, fewer, image)
    top = jax.tree.map(np.asarray, variables["params"]["mlpconv2"]["cccp4"])
    np.testing.assert_allclose(np.asarray(features) @ top["kernel"][0, 0] + top["bias"], logits, rtol=1e-4, atol=1e-4)
    assert "class_maps" not in maps


@pytest.mark.parametrize("name", CASES)
def test_every_model_can_do_without_classes_and_as_maps(name):
    """Features `[B, D]`; the last map of each size, the largest first; and no variable that the whole model has not."""
    case = CASES[name]
    model, image = case.create(num_classes=0), case.images(2)

    def run(network):
        return network.init_with_output(jax.random.key(0), image, train=False)

    (features, maps), variables = jax.eval_shape(lambda: run(model))
    assert (features.ndim, features.shape[0], features.dtype) == (2, 2, np.float32)
    _, whole = jax.eval_shape(lambda: run(case.create()))
    assert flatten_dict(variables).items() <= flatten_dict(whole).items()
    made = levels(model, image.shape[1:])
    outputs, shared = jax.eval_shape(lambda: run(Features(model, made)))
    assert shared == variables
    assert [o.shape for o in outputs] == [maps[level.name].shape for level in made]
    assert {o.shape[1:3] for o in outputs} == {m.shape[1:3] for m in maps.values()}
    assert [o.shape[1] for o in outputs] == sorted((o.shape[1] for o in outputs), reverse=True)


def test_levels_are_chosen_by_number():
    model, variables = nin_jax.create_model("nin", features_only=True, out_indices=(0, -1), widths=((4, 3), (5,), (6,)))
    first, last = jax.eval_shape(lambda: model.apply(variables, np.zeros((1, 32, 32, 3), np.float32), train=False))
    assert (first.shape, last.shape) == ((1, 32, 32, 3), (1, 8, 8, 6))
    assert [tuple(level) for level in model.levels] == [("cccp1", 3, 1), ("conv3", 6, 4)]


def test_other_classes_start_anew_and_the_rest_is_kept():
    _, old = nin_jax.create_model("nin.digits", pretrained=True)
    _, new = nin_jax.create_model("nin.digits", pretrained=True, num_classes=3, seed=1)
    old, new = flatten_dict(old), flatten_dict(new)
    assert {"/".join(path[-2:]) for path in old if old[path].shape != new[path].shape} == {"cccp4/kernel", "cccp4/bias"}
    for path in (path for path in old if path[-2] != "cccp4"):
        np.testing.assert_array_equal(old[path], new[path])
    assert np.std(new["params", "mlpconv2", "cccp4", "kernel"]) > 0


@pytest.mark.parametrize("channels", [2, 3])
def test_grey_images_look_the_same_in_any_number_of_channels(channels):
    """The filters of one channel are shared out, so an image repeated over the channels has the same logits."""
    image = np.random.default_rng(0).random((1, 8, 8, 1), np.float32)
    model, variables = nin_jax.create_model("nin.digits", pretrained=True)
    wider, others = nin_jax.create_model("nin.digits", pretrained=True, in_chans=channels)
    logits, _ = apply(wider, others, np.repeat(image, channels, -1))
    np.testing.assert_allclose(logits, apply(model, variables, image)[0], rtol=1e-4, atol=1e-4)


def test_the_name_of_weights_alone_is_their_network_with_random_ones():
    model, variables = nin_jax.create_model("nin.digits", seed=3)
    trained, theirs = nin_jax.create_model("nin.digits", pretrained=True)
    assert model == trained
    mine, theirs = flatten_dict(variables), flatten_dict(theirs)
    assert {p: v.shape for p, v in mine.items()} == {p: v.shape for p, v in theirs.items()}
    assert all(not np.array_equal(mine[p], theirs[p]) for p in mine)


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("nim", {}, "unknown model 'nim': did you mean 'nin'?"),
        ("nin", {"head": "GAP"}, "model nin: head='GAP'"),
        ("nin", {"widths": ((4,),)}, "model nin of 32 x 32 x 3: 1 widths want as many kernels"),
        ("nin", {"num_classes": -1}, "num_classes=-1: must be a whole number, 0 or more"),
        ("nin", {"in_chans": 0}, "in_chans=0: must be a whole number, 1 or more"),
        ("nin", {"out_indices": (0,)}, "out_indices: needs features_only=True"),
        ("nin", {"features_only": True, "out_indices": (7,)}, "out_indices=(7,): there are 3 levels"),
        ("nin", {"pretrained": True}, "model 'nin' with pretrained=True: name the weights: "),
        ("maxout", {"pretrained": True}, "model 'maxout' has no trained weights; those that do:"),
        ("nin.digit", {}, "no trained network 'nin.digit', and no such folder: did you mean 'nin.digits'?"),
        (
            "nin.digits",
            {"pretrained": True, "dropout": 0.1},
            "dropout: the arguments of 'nin' are those of its weights",
        ),
        ("maxout", {"pretrained": "nin.digits"}, "nin.digits holds a 'nin', not a 'maxout'"),
    ],
)
def test_what_cannot_be_made_is_said_in_one_line(name, arguments, said):
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        nin_jax.create_model(name, **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nin, batch_norm", pytest.param("network_in_zfnet", marks=pytest.mark.slow)])
def test_in_nnx_a_model_gives_the_same_logits(name):
    """Exactly: the same operations on the same variables, those of batch normalisation among them."""
    case = CASES[name]
    model, images = case.create(), case.images(2)
    variables = case.variables(model)
    module = nin_jax.to_nnx(model, variables, images)
    logits, _ = nnx.jit(lambda module, images: module(images, train=False))(module, images)
    np.testing.assert_array_equal(logits, apply(model, variables, images)[0])
    assert len(jax.tree.leaves(nnx.state(module, nnx.Param))) == len(jax.tree.leaves(variables["params"]))
