"""Reading pictures with boxes, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nin_jax.data.objects import annotations
from nin_jax.errors import UserError

OBJECT = (
    "<object><name>{name}</name><difficult>{difficult}</difficult>"
    "<bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object>"
)
PAGE = "{head}<annotation><size><width>40</width><height>30</height></size>{objects}</annotation>"


def devkit(folder: Path, *objects: str, head: str = "", page: str = PAGE) -> Path:
    """A folder as VOC's, with one picture of 40 x 30."""
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(folder / "JPEGImages/000001.jpg")
    (folder / "ImageSets/Main/test.txt").write_text("000001\n")
    (folder / "ImageSets/Main/cat_test.txt").write_text("000001  1\n")
    (folder / "Annotations/000001.xml").write_text(page.format(head=head, objects="".join(objects)))
    return folder


def test_voc_boxes_begin_at_0_and_end_behind_their_last_pixel(tmp_path: Path) -> None:
    cat = OBJECT.format(1, 1, 10, 20, name="cat", difficult=0)
    dog = OBJECT.format(40, 30, 40, 30, name="dog", difficult=1)  # the last pixel alone
    [found] = annotations.voc(devkit(tmp_path / "d", cat, dog), "test")
    assert found.boxes.tolist() == [[0, 0, 10, 20], [39, 29, 40, 30]]
    assert [annotations.VOC_CLASSES[k] for k in found.labels] == ["cat", "dog"]
    assert found.difficult.tolist() == [False, True]
    assert found.size == (40, 30)
    assert found.picture.name == "000001.jpg"
    assert [a.name for a in annotations.voc(tmp_path / "d", "all")] == ["000001"]


BOMB = '<!DOCTYPE lolz [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'


@pytest.mark.parametrize(
    ("objects", "head", "line"),
    [
        ([OBJECT.format(1, 1, 41, 20, name="cat", difficult=0)], "", "outside its picture of 40 x 30"),
        ([OBJECT.format(0, 1, 10, 20, name="cat", difficult=0)], "", "outside its picture"),
        ([OBJECT.format(12, 1, 10, 20, name="cat", difficult=0)], "", "is empty"),
        ([OBJECT.format(1, 1, 10, 20, name="cats", difficult=0)], "", "unknown class 'cats': did you mean 'cat'"),
        ([OBJECT.format("nan", 1, 10, 20, name="cat", difficult=0)], "", "bndbox/xmin is 'nan', not a number"),
        (["<object><name>cat</name></object>"], "", "bndbox/xmin is None, not a number"),
        ([], BOMB, "a document type is not read"),
        (["<object>"], "", "broken XML"),
    ],
)
def test_broken_annotations_are_refused_in_one_line(objects: list[str], head: str, line: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        annotations.voc(devkit(tmp_path / "d", *objects, head=head), "test")
    assert line in str(error.value)
    assert "000001.xml" in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_parts_are_named(tmp_path: Path) -> None:
    root = devkit(tmp_path / "d")
    with pytest.raises(UserError, match=r"split 'tset'.*test"):
        annotations.voc(root, "tset")
    with pytest.raises(UserError, match="no folder Annotations"):
        annotations.voc(tmp_path, "test")
    (root / "JPEGImages/000001.jpg").unlink()
    with pytest.raises(UserError, match=r"JPEGImages/000001\.jpg is missing"):
        annotations.voc(root, "test")
    (root / "Annotations/000001.xml").write_text("<annotation><size><width>40</width>")  # cut off
    with pytest.raises(UserError, match="broken XML"):
        annotations.voc(root, "test")
    (root / "ImageSets/Main/test.txt").write_text("../../secret\n")
    with pytest.raises(UserError, match="not the name of a picture"):
        annotations.voc(root, "test")


def coco_file(folder: Path, **changes: object) -> Path:
    Image.new("RGB", (40, 30)).save(folder / "a.jpg")
    content = {
        "images": [{"id": 5, "file_name": "a.jpg", "width": 40, "height": 30}],
        "categories": [{"id": 9, "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": [{"image_id": 5, "category_id": 9, "bbox": [1, 2, 10, 20], "iscrowd": 1}],
    }
    (folder / "instances.json").write_text(json.dumps({**content, **changes}))
    return folder / "instances.json"


def test_coco(tmp_path: Path) -> None:
    [found], classes = annotations.coco(coco_file(tmp_path), tmp_path)
    assert classes == ("cat", "dog")
    assert found.boxes.tolist() == [[1, 2, 11, 22]]
    assert found.labels.tolist() == [1]
    assert found.difficult.tolist() == [True]
    outside = [{"id": 5, "file_name": "../a.jpg", "width": 40, "height": 30}]
    with pytest.raises(UserError, match="is not in"):
        annotations.coco(coco_file(tmp_path, images=outside, annotations=[]), tmp_path)
    with pytest.raises(UserError, match="not as COCO's instances: KeyError"):
        annotations.coco(coco_file(tmp_path, annotations=[{"image_id": 6}]), tmp_path)


def test_the_real_sample_is_read(voc_sample: Path) -> None:
    found = annotations.voc(voc_sample, "trainval") + annotations.voc(voc_sample, "test")
    assert len(found) == 320
    assert sum(len(a.boxes) for a in found) == 1501
    assert sum(int(a.difficult.sum()) for a in found) == 389
    for a in found[:5]:
        with Image.open(a.picture) as picture:
            assert picture.size == a.size
    assert np.concatenate([a.boxes for a in found]).min() >= 0
