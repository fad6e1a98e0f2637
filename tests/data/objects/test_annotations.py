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
        ([OBJECT.format(1, 1, 10, 20, name="cat", difficult="2")], "", "difficult is '2', not 0 or 1"),
        ([], BOMB, "a document type is not read"),
        ([], "<?xml version='1.0' encoding='gb2312'?>", "multi-byte encodings are not supported"),
        ([], "<?xml version='1.0' encoding='nonsense'?>", "unknown encoding: nonsense"),
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


def test_names_of_pictures_are_taken_as_they_are(tmp_path: Path) -> None:
    """Brackets, a label file beside the picture, what macOS leaves; of two pictures with one name neither is chosen."""
    root = devkit(tmp_path / "d", OBJECT.format(1, 1, 10, 20, name="cat", difficult="True"))
    (root / "Annotations/._000001.xml").write_bytes(b"\0\5\x16\7")
    (root / "Annotations/a[1] *.xml").write_bytes((root / "Annotations/000001.xml").read_bytes())
    (root / "JPEGImages/a[1] *.PNG").touch()
    (root / "JPEGImages/a[1] *.a.png").touch()
    (root / "JPEGImages/000001.JSON").touch()
    found = annotations.voc(root, "all")
    assert [(a.name, a.picture.name) for a in found] == [("000001", "000001.jpg"), ("a[1] *", "a[1] *.PNG")]
    assert found[0].difficult.tolist() == [True]
    (root / "JPEGImages/000001.png").touch()
    with pytest.raises(UserError, match=r"000001\.jpg and 000001\.png may be its picture"):
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


def coco_object(box: list[float], **more: object) -> list[dict[str, object]]:
    return [{"image_id": 5, "category_id": 9, "bbox": box, **more}]


def test_what_rounding_leaves_outside_is_cut_off(tmp_path: Path) -> None:
    """17.1 + 22.900000000000002 is more than 40; COCO itself has such boxes. And a crowd that is "0" is none."""
    file = coco_file(tmp_path, annotations=coco_object([17.1, 0, 22.900000000000002, 30.01], iscrowd="0"))
    [found], _ = annotations.coco(file, tmp_path)
    assert found.boxes.tolist() == [[17.1, 0, 40, 30]]
    assert found.difficult.tolist() == [False]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"annotations": coco_object([1, 2, float("nan"), 3])}, "is empty"),
        ({"annotations": coco_object([float("nan"), 2, 3, 3])}, "is empty"),
        ({"annotations": coco_object([1, 2, 39.02, 3])}, "outside its picture of 40 x 30"),
        ({"annotations": coco_object([1, 2, 10**400, 3])}, "not as COCO's instances: OverflowError"),
        ({"images": [{"id": 5, "file_name": "a.jpg", "width": float("inf"), "height": 30}]}, "OverflowError"),
        ({"images": [{"id": 5, "file_name": "a\0.jpg", "width": 40, "height": 30}]}, "is not in"),
        ({"images": [{"id": 5, "file_name": 5000 * "a", "width": 40, "height": 30}]}, "is not in"),
        ({"images": [{"id": 5, "file_name": "\ud800", "width": 40, "height": 30}]}, "is not in"),
    ],
)
def test_what_is_no_box_and_no_file_is_refused(changes: dict[str, object], line: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=line):
        annotations.coco(coco_file(tmp_path, **changes), tmp_path)


def test_the_real_sample_is_read(voc_sample: Path) -> None:
    found = annotations.voc(voc_sample, "trainval") + annotations.voc(voc_sample, "test")
    assert len(found) == 320
    assert sum(len(a.boxes) for a in found) == 1501
    assert sum(int(a.difficult.sum()) for a in found) == 389
    for a in found[:5]:
        with Image.open(a.picture) as picture:
            assert picture.size == a.size
    assert np.concatenate([a.boxes for a in found]).min() >= 0
