"""Pictures in, names out: what a trained network is given, and what it says."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from PIL import Image

import nin_jax
from nin_jax.data.datasets import digits
from nin_jax.errors import UserError
from nin_jax.training import predict


@pytest.fixture(scope="module")
def classifier():
    return nin_jax.load("nin.digits")


@pytest.fixture(scope="module")
def images():
    return digits.load("test")[0]


def test_a_picture_is_a_file_an_array_or_pillows(classifier, images, tmp_path):
    """And many are any of them, one after the other."""
    image = images[0]
    picture = Image.fromarray(image[..., 0])
    picture.save(tmp_path / "digit.png")
    several = [
        tmp_path / "digit.png",
        str(tmp_path / "digit.png"),
        picture,
        picture.convert("RGB"),
        image,
        image[..., 0],
    ]
    (wanted,) = classifier.classify(image)
    assert wanted.name == classifier.class_names[wanted.index] == "5"
    assert [classifier.classify(one)[0] for one in several] == [wanted] * len(several)
    assert {p.name for p in classifier.classify(several)} == {"5"}
    assert [p.index for p in classifier.classify(images[:20])] == classifier.logits(images[:20]).argmax(-1).tolist()


def test_probabilities_are_the_softmax_of_the_logits(classifier, images):
    (prediction,) = classifier.classify(images[7])
    logits, _ = classifier(images[7:8])
    powers = np.exp(logits[0].astype(np.float64))
    assert [guess.index for guess in prediction.top] == np.argsort(-logits[0]).tolist()[:5]
    for guess in prediction.top:
        np.testing.assert_allclose(guess.probability, powers[guess.index] / powers.sum(), rtol=1e-5)
    assert prediction[:3] == prediction.top[0]


def test_batches_are_filled_up_and_say_the_same(classifier, images, monkeypatch, caplog):
    """33 images are computed as 64, five as two, two and one; each size is compiled once."""
    whole, _ = classifier(images[:5])
    with jax.log_compiles(), caplog.at_level("WARNING", logger="jax"):
        filled = classifier.logits(images[:33])[:5], classifier.logits(images[:64])[:5]
    assert sum("Finished XLA compilation" in record.getMessage() for record in caplog.records) == 1
    monkeypatch.setattr(predict, "BATCH", 2)
    for logits in (*filled, classifier.logits(images[:5])):
        assert logits.shape == whole.shape
        np.testing.assert_allclose(logits, whole, rtol=0, atol=1e-5 * np.abs(whole).max())


def test_evidence_is_the_enlarged_class_map(classifier, images):
    """At the middle of each 2 x 2 block bilinear enlargement weighs the four nearest cells by 9, 3, 3 and 1."""
    _, maps = classifier(images[:1])
    positive = np.maximum(maps["class_maps"][0], 0)
    cells = positive[..., 5] / positive.max()
    evidence = classifier.evidence(images[0], 5)
    assert (evidence.dtype, evidence.shape) == (np.float32, (8, 8))
    near, far = cells[1, 1] * 9 + cells[1, 2] * 3, cells[2, 1] * 3 + cells[2, 2]
    np.testing.assert_allclose(evidence[3, 3], (near + far) / 16, rtol=1e-5)
    assert evidence.min() >= 0
    assert evidence.max() <= 1
    np.testing.assert_array_equal(classifier.evidence(images[0], "5"), evidence)


def test_an_overlay_is_the_picture_where_there_is_no_evidence(classifier, images):
    overlay = np.asarray(classifier.overlay(images[0]))
    assert overlay.shape == (256, 256, 3)
    np.testing.assert_array_equal(overlay, classifier.overlay(images[0], "5"))
    enlarged = Image.fromarray(images[0, ..., 0]).convert("RGB").resize((256, 256), Image.Resampling.BILINEAR)
    evidence = Image.fromarray(classifier.evidence(images[0], 5)).resize((256, 256), Image.Resampling.BILINEAR)
    without = np.asarray(evidence) == 0
    assert without.any()
    np.testing.assert_array_equal(overlay[without], np.asarray(enlarged)[without])
    assert (overlay[~without] != np.asarray(enlarged)[~without]).any()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("nowhere.png", r"^nowhere.png: no such file$"),
        (__file__, "test_predict.py is not a readable picture: cannot identify image file"),
        ([], "there is no picture"),
        (3, "int is no picture: expected a file name"),
        (np.zeros((8, 8)), r"a picture of float64 \[8, 8\]: expected uint8"),
        (np.zeros((8, 8, 2), np.uint8), r"\[8, 8, 2\]: .* 1, 3 or 4 channels"),
        (np.zeros((0, 8), np.uint8), "it has no pixels"),
        (Image.new("RGB", (0, 8)), "a picture of mode RGB, 0 x 8: it has no pixels"),
        (Image.new("F", (8, 8)), "a picture of mode F is not a readable picture"),
        ("~nobody-of-this-name/a.png", "^~nobody-of-this-name/a.png: no such file"),
        (5000 * "a", "a: no such file"),
    ],
)
def test_what_is_no_picture_is_said_in_one_line(classifier, given, said):
    with pytest.raises(UserError, match=said) as caught:
        classifier.classify(given)
    assert "\n" not in str(caught.value)


def test_evidence_of_what_is_not_there_is_refused(classifier, images):
    for which, said in (("6.", r"unknown class '6.': did you mean '6'\?"), (10, "class 10: must be from 0 to 9")):
        with pytest.raises(UserError, match=said):
            classifier.evidence(images[0], which)
    for which in (1.0, 1.5, np.float32(1), True, np.True_, None, b"1", [1]):
        with pytest.raises(UserError, match=r"class .*: expected the name of a class or its index, a whole number"):
            classifier.evidence(images[0], which)
    np.testing.assert_array_equal(classifier.evidence(images[0], np.uint8(5)), classifier.evidence(images[0], 5))
    with pytest.raises(UserError, match="evidence takes one picture; 2 are given"):
        classifier.evidence(images[:2], 1)
