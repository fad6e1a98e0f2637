"""VOC's pictures with several labels, from a devkit that the test writes; and composed scenes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nin_jax.data import splits
from nin_jax.data.datasets import digits, scenes, voc
from nin_jax.data.objects.annotations import VOC_CLASSES
from nin_jax.data.objects.scenes import scene
from nin_jax.errors import UserError

OBJECT = "<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"


def devkit(folder: Path) -> Path:
    """Three pictures: a cat; a cat and a difficult dog; a difficult cat beside one that is not."""
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    objects = [[("cat", 0)], [("cat", 0), ("dog", 1)], [("cat", 1), ("cat", 0)]]
    for i, of_picture in enumerate(objects):
        Image.fromarray(np.full((30, 40, 3), 80 * i, np.uint8)).save(folder / f"JPEGImages/{i}.png")
        items = "".join(OBJECT.format(*one) for one in of_picture)
        size = "<size><width>40</width><height>30</height></size>"
        (folder / f"Annotations/{i}.xml").write_text(f"<annotation>{size}{items}</annotation>")
    (folder / "ImageSets/Main/trainval.txt").write_text("0\n1\n")
    (folder / "ImageSets/Main/test.txt").write_text("2\n")
    (folder / "ImageSets/Main/cat_test.txt").write_text("2 1\n")
    return folder


def test_labels_are_those_of_the_lists_of_voc(tmp_path):
    root = str(devkit(tmp_path / "VOC2007"))
    info = voc.info(root, size=8, clusters=2, each=2)
    assert (dict(info.splits), info.image_shape, info.multilabel) == ({"test": 1, "trainval": 2}, (32, 8, 3), True)
    images, labels = voc.load("trainval", root, size=8, clusters=2, each=2, smallest=20.0)
    assert images.shape == (2, 32, 8, 3)
    assert [set(image.ravel().tolist()) for image in images] == [{0}, {80}]
    cat, dog = VOC_CLASSES.index("cat"), VOC_CLASSES.index("dog")
    assert labels[:, cat].tolist() == [1, 1]
    assert labels[:, dog].tolist() == [-1, 0]
    assert (np.delete(labels, [cat, dog], 1) == -1).all()
    assert voc.load("test", root, size=8)[1][0, cat] == 1
    whole = voc.load("trainval+test", root, size=8)[0]
    assert whole.shape == (3, 8, 8, 3)


def test_a_broken_devkit_is_named_in_one_line(tmp_path):
    root = devkit(tmp_path / "VOC2012")
    with pytest.raises(UserError, match=r"set --config\.data_dir=PATH"):
        voc.info(None)
    with pytest.raises(UserError, match="no folder Annotations"):
        voc.info(str(tmp_path))
    with pytest.raises(UserError, match="has no split 'tests': did you mean 'test'"):
        voc.load("tests", str(root))
    Image.new("RGB", (41, 30)).save(root / "JPEGImages/2.png")
    with pytest.raises(UserError, match=r"2\.png .*it has 41 x 30 pixels, its annotation says \(40, 30\)"):
        voc.load("test", str(root))
    Image.new("RGB", (40, 30)).save(root / "JPEGImages/2.png", exif=b"Exif\0\0no EXIF data")
    with pytest.raises(UserError, match=r"2\.png is not a readable picture: not a TIFF file"):
        voc.load("test", str(root))
    (root / "JPEGImages/2.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"2\.png is not a readable picture.*bad_records='skip'"):
        voc.load("test", str(root))
    both = voc.load("trainval+test", str(root), size=8, bad_records="skip")
    left, out = splits.usable(both, voc.info(str(root), size=8), "split", "skip")
    assert (len(left[0]), out) == (2, 1)
    (root / "Annotations/2.xml").unlink()  # as of the test pictures of 2012
    with pytest.raises(UserError, match=r"2\.xml cannot be read"):
        voc.load("test", str(root))


def test_another_file_of_proposals_is_another_entry_in_the_cache(tmp_path, monkeypatch):
    """Also where its name begins with ~."""
    monkeypatch.setenv("HOME", str(tmp_path))
    root, entries = devkit(tmp_path / "VOC2007"), []
    monkeypatch.setattr(voc, "cached", lambda name, facts, make: entries.append(facts) or make())
    for boxes in ([[0, 0, 20, 30]], [[0, 0, 20, 30], [20, 0, 40, 30]]):
        (tmp_path / "boxes.json").write_text(json.dumps({"2": boxes}))
        voc.load("test", str(root), size=8, clusters=1, smallest=20.0, proposals="~/boxes.json")
    assert entries[0] != entries[1]


def test_scenes_have_the_labels_of_their_objects():
    arguments = {"of": "digits", "train": 2, "test": 3, "side": 24, "size": 24, "seed": 5}
    images, labels = scenes.load("test", **arguments)
    digit_images, kinds = digits.load("test")
    for i in range(3):
        made = scene(digit_images, kinds, i, seed=5, side=24)
        np.testing.assert_array_equal(images[i], made.image)
        assert np.flatnonzero(labels[i] == 1).tolist() == sorted({*made.labels.tolist()})
    assert set(np.unique(labels)) == {-1, 1}
    assert scenes.info(of="digits", side=24, size=8, clusters=2, each=3).image_shape == (48, 8, 1)
    with pytest.raises(UserError, match="each=0"):
        scenes.info(of="digits", side=24, clusters=2, each=0)


def test_classes_in_another_order_take_their_columns_along():
    info = splits.Info("mine", 3, (8, 8, 3), {}, "", class_names=("b", "a"), multilabel=True)
    labels = np.array([[1, 0], [-1, 1]], np.int32)
    assert splits.renamed(labels, np.array([1, 0]), info).tolist() == [[0, 1, -1], [1, -1, -1]]
