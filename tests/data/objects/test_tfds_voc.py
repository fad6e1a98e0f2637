"""What TFDS has prepared of VOC is read as the devkit's folder is; TFDS itself writes it here."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nin_jax.data.datasets import voc
from nin_jax.data.objects import annotations, tfds_voc
from nin_jax.detection import config, pictures
from nin_jax.errors import UserError

BOXES = {"000007": [("car", (141, 50, 500, 330), 0)], "000012": [("cat", (1, 1, 13, 7), 0), ("dog", (2, 3, 9, 12), 1)]}
SIZES = {"000007": (500, 333), "000012": (13, 17)}


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """ROOT/voc/2007/5.0.0 with a picture in each of two splits, by the features of TFDS's own voc."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.core.splits import SplitDict, SplitInfo

    stock: Any = tfds.builder_cls("voc")
    info = stock(config="2007", data_dir=str(tmp_path), file_format="array_record").info
    where: Any = tmp_path / "voc/2007/5.0.0"
    folder = Path(where)
    folder.mkdir(parents=True)
    template = tfds.core.ShardedFileTemplate(where, dataset_name="voc", filetype_suffix="array_record")
    splits = []
    for split, name in (("train", "000007"), ("test", "000012")):
        width, height = SIZES[name]
        picture = io.BytesIO()
        Image.new("RGB", SIZES[name], "red").save(picture, "JPEG")
        objects = [
            {
                "label": kind,
                "bbox": tfds.features.BBox(y0 / height, x0 / width, y1 / height, x1 / width),
                "pose": "unspecified",
                "is_truncated": False,
                "is_difficult": bool(hard),
            }
            for kind, (x0, y0, x1, y1), hard in BOXES[name]
        ]
        kinds = sorted({one["label"] for one in objects})
        example = {"image": io.BytesIO(picture.getvalue()), "image/filename": f"{name}.jpg", "objects": objects}
        example |= {"labels": kinds, "labels_no_difficult": kinds}
        file = folder / f"voc-{split}.array_record-00000-of-00001"
        writer = ArrayRecordWriter(str(file), "group_size:1")
        writer.write(info.features.serialize_example(info.features.encode_example(example)))
        writer.close()
        splits.append(SplitInfo(split, [1], file.stat().st_size, template.replace(split=split)))
    info.set_splits(SplitDict(splits))
    info.write_to_directory(str(folder))
    return folder


def test_boxes_are_those_of_the_xml(prepared: Path) -> None:
    root = tfds_voc.devkit(prepared)
    assert annotations.lists(root) == ["test", "train", "trainval"]
    for split, name in (("trainval", "000007"), ("test", "000012")):
        [found] = annotations.voc(root, split)
        assert (found.name, found.size) == (name, SIZES[name])
        wanted = [(x0 - 1, y0 - 1, x1, y1) for _, (x0, y0, x1, y1), _ in BOXES[name]]
        assert found.boxes.tolist() == [list(map(float, box)) for box in wanted]
        assert [annotations.VOC_CLASSES[k] for k in found.labels] == [kind for kind, *_ in BOXES[name]]
        assert found.difficult.tolist() == [bool(hard) for *_, hard in BOXES[name]]
    assert tfds_voc.devkit(prepared) == root
    assert tfds_voc.devkit(root) == root


def test_hcp_and_detection_take_it(prepared: Path) -> None:
    images, labels = voc.load("test", str(prepared), size=8)
    assert images.shape == (1, 8, 8, 3)
    assert [annotations.VOC_CLASSES[k] for k in np.flatnonzero(labels[0] == 1)] == ["cat"]
    plain: Any = config.default()
    plain.data, plain.path = "voc", str(prepared)
    train, _ = pictures.read(config.check(plain))
    assert train.image(0).shape == (333, 500, 3)


def test_a_broken_file_is_named(prepared: Path) -> None:
    file = next(prepared.glob("voc-test*"))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=r"voc-test\.array_record-00000-of-00001 is missing or incomplete"):
        tfds_voc.devkit(prepared)
