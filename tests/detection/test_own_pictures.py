"""A user's own pictures with boxes, as a folder of VOC's XML and as COCO's JSON, through the very same command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nin_jax.detection import config, main, pictures
from nin_jax.errors import UserError
from tests.data.objects.test_annotations import OBJECT

COLOURS = {"brick": (200, 30, 30), "pond": (30, 30, 200)}
COUNT, WIDTH, HEIGHT = 8, 72, 60


def own(folder: Path) -> Path:
    """Pictures with one box of each of two classes, and no lists; boxes.json says the same."""
    random, listed = np.random.default_rng(0), []
    for name in ("Annotations", "JPEGImages"):
        (folder / name).mkdir(parents=True)
    for i in range(COUNT):
        image, objects = random.integers(90, 130, (HEIGHT, WIDTH, 3)).astype(np.uint8), []
        for left, (name, colour) in zip((0, WIDTH // 2), COLOURS.items(), strict=True):
            x, y = left + int(random.integers(1, 12)), int(random.integers(1, 36))
            image[y : y + 20, x : x + 20] = colour
            objects.append((name, [x, y, 20, 20]))
        Image.fromarray(image).save(folder / f"JPEGImages/yard {i}.png")
        items = [OBJECT.format(x + 1, y + 1, x + w, y + h, name=n, difficult=0) for n, (x, y, w, h) in objects]
        size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
        (folder / f"Annotations/yard {i}.xml").write_text(f"<annotation>{size}{''.join(items)}</annotation>")
        listed.append(objects)
    names = list(COLOURS)
    content = {
        "categories": [{"id": 7 + k, "name": name} for k, name in enumerate(names)],
        "images": [{"id": i, "file_name": f"yard {i}.png", "width": WIDTH, "height": HEIGHT} for i in range(COUNT)],
        "annotations": [
            {"image_id": i, "category_id": 7 + names.index(name), "bbox": box}
            for i, objects in enumerate(listed)
            for name, box in objects
        ],
    }
    (folder / "boxes.json").write_text(json.dumps(content))
    return folder


def test_a_folder_without_lists_and_with_other_classes(tmp_path: Path) -> None:
    root = own(tmp_path / "yard")
    plain: Any = config.default()
    plain.data, plain.path = "voc", str(root)
    with pytest.raises(UserError, match=r"unknown class 'brick'.*classes=\(\.\.\.\) names your own"):
        pictures.read(config.check(plain))
    plain.classes = tuple(COLOURS)
    train, test = pictures.read(config.check(plain))
    assert [o.name for o in train.listed] == [f"yard {i}" for i in range(0, COUNT, 2)]
    assert [o.name for o in test.listed] == [f"yard {i}" for i in range(1, COUNT, 2)]
    assert test.classes == ("brick", "pond")


@pytest.mark.slow
def test_both_layouts_find_the_same_by_the_same_command(tmp_path: Path) -> None:
    root, found = own(tmp_path / "yard"), []
    for words in (
        ["--config.data=voc", f"--config.path={root}", "--config.classes=('brick','pond')"],
        ["--config.data=coco", f"--config.path={root / 'boxes.json'}", f"--config.pictures={root / 'JPEGImages'}"],
    ):
        workdir = tmp_path / str(len(found))
        changed = ["--config.fewest_boxes=4", "--config.names=()", "--config.regression=False"]
        changed += ["--config.proposals.scales=2", "--config.proposals.smallest=0.35"]
        main.main(["detection", "--config=detect_voc:colour", f"--workdir={workdir}", *words, *changed])
        found.append(json.loads((workdir / "detections.json").read_text()))
        report = json.loads((workdir / "report.json").read_text())
        assert report["pictures"] == [4, 4]
        assert report["map_pct"] > 50
    assert found[0] == found[1]
    assert found[0].keys() == COLOURS.keys()
