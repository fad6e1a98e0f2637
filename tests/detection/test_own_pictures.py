"""A user's own pictures with boxes, as a folder of VOC's XML and as COCO's JSON, through the very same command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nin_jax.data.objects import annotations
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


def asked(root: Path, **keys: Any) -> config.Detection:
    plain: Any = config.default()
    plain.update({"data": "coco", "path": str(root / "boxes.json"), "pictures": str(root / "JPEGImages"), **keys})
    return config.check(plain)


def test_a_json_of_test_pictures_of_its_own(tmp_path: Path) -> None:
    root, other = own(tmp_path / "yard"), own(tmp_path / "garden")
    for i in range(COUNT):  # in a folder, under other names
        (other / "JPEGImages" / "day").mkdir(exist_ok=True)
        (other / f"JPEGImages/yard {i}.png").rename(other / f"JPEGImages/day/{i}.png")
    text = (other / "boxes.json").read_text().replace("yard ", "day/")
    (other / "boxes.json").write_text(text)
    keys = {"test_path": str(other / "boxes.json"), "test_pictures": str(other / "JPEGImages")}
    train, test = pictures.read(asked(root, **keys))
    assert [o.name for o in train.listed] == [f"yard {i}" for i in range(COUNT)]
    assert [o.name for o in test.listed] == [f"day_{i}" for i in range(COUNT)]
    assert test.image(0).shape == (HEIGHT, WIDTH, 3)
    empty = tmp_path / "empty.json"
    empty.write_text(json.dumps(json.loads(text) | {"images": [], "annotations": []}))
    with pytest.raises(UserError, match=r"empty\.json: there are no test pictures"):
        main.run(asked(root, test_path=str(empty)), {}, tmp_path / "run")
    (other / "boxes.json").write_text(text.replace("pond", "lake"))
    with pytest.raises(UserError, match=r"its categories are \('brick', 'lake'\), those of path \('brick', 'pond'\)"):
        pictures.read(asked(root, **keys))


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ('"id": 8', '"id": 7', "categories, id: 7 is there twice"),
        ('"name": "pond"', '"name": "brick"', "categories, name: 'brick' is there twice"),
        ('{"id": 1, "file_name"', '{"id": 0, "file_name"', "images, id: 0 is there twice"),
        (
            '"file_name": "yard 1.png"',
            '"file_name": "yard 0.png"',
            "names of pictures without their suffix: 'yard 0' is",
        ),
    ],
)
def test_what_is_there_twice_is_refused(old: str, new: str, line: str, tmp_path: Path) -> None:
    root = own(tmp_path / "yard")
    text = (root / "boxes.json").read_text()
    assert old in text
    (root / "boxes.json").write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=line):
        pictures.read(asked(root))


def test_a_list_that_names_a_picture_twice_is_refused(tmp_path: Path) -> None:
    root = own(tmp_path / "yard")
    (root / "ImageSets/Main").mkdir(parents=True)
    (root / "ImageSets/Main/trainval.txt").write_text("yard\nyard\n")
    with pytest.raises(UserError, match=r"trainval\.txt: 'yard' is there twice"):
        annotations.listed(root, "trainval")


def test_pictures_are_upright_and_on_white(tmp_path: Path) -> None:
    root = own(tmp_path / "yard")
    clear = Image.new("RGBA", (WIDTH, HEIGHT))  # transparent, and black where nobody looks
    clear.putpixel((0, 0), (255, 0, 0, 255))
    clear.save(root / "JPEGImages/yard 0.png")
    turned, exif = Image.new("RGB", (HEIGHT, WIDTH), (9, 9, 9)), Image.Exif()
    exif[0x0112] = 6  # as a camera on its side says it: turn by a quarter
    turned.save(root / "JPEGImages/yard 2.png", exif=exif)
    Image.new("RGB", (HEIGHT, WIDTH)).save(root / "JPEGImages/yard 4.png")
    train, _ = pictures.read(asked(root))
    assert train.image(0)[0, :2].tolist() == [[255, 0, 0], [255, 255, 255]]
    assert train.image(1).shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(UserError, match=f"{HEIGHT} x {WIDTH} pixels, but its boxes are for {WIDTH} x {HEIGHT}"):
        train.image(2)


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"classes": ("brick",)}, "classes: is for data='voc' alone, and data is 'coco'"),
        ({"data": "voc"}, "pictures: is for data='coco' alone"),
        ({"test_pictures": "elsewhere"}, "test_pictures: needs test_path"),
    ],
)
def test_a_key_that_would_do_nothing_is_refused(keys: dict[str, Any], line: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=line):
        asked(tmp_path, **keys)


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


def few(root: Path, count: int = COUNT, **keys: Any) -> config.Detection:
    """An experiment of colours on the first pictures, in a second."""
    content = json.loads((root / "boxes.json").read_text())
    content["images"] = content["images"][:count]
    content["annotations"] = [item for item in content["annotations"] if item["image_id"] < count]
    (root / "boxes.json").write_text(json.dumps(content))
    quick = {"networks": ("colour",), "fewest_boxes": 1, "proposals.scales": 1, "regression": False}
    flat: Any = config.default()
    flat.update({"data": "coco", "path": str(root / "boxes.json"), "pictures": str(root / "JPEGImages")})
    flat.update_from_flattened_dict(quick | keys)
    return config.check(flat)


def test_classes_of_ones_own_need_no_other_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The documented command: the experiment's network knows neither class, and its names are for VOC's."""
    root = own(tmp_path / "yard")
    keys = {"localise": "nin.cifar10", "names": ("car=automobile",)}
    report = main.run(few(root, **keys), {}, tmp_path / "run")
    assert report["classes"].keys() == COLOURS.keys()
    assert "localisation" not in report
    said = capsys.readouterr().err
    assert "names=car=automobile: the pictures have no such class" in said
    assert "localise=nin.cifar10: it knows none of brick, pond; say which are the same by names; boxes of class" in said
    with pytest.raises(UserError, match="it knows none of brick, pond"):  # where nothing else was asked for
        main.run(few(root, networks=(), **keys), {}, tmp_path / "places")


def test_a_class_that_no_test_picture_has_is_not_localised(tmp_path: Path) -> None:
    root = own(tmp_path / "yard")
    content = json.loads((root / "boxes.json").read_text())
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] == 7 + a["image_id"] % 2]
    (root / "boxes.json").write_text(json.dumps(content))
    keys = {"networks": (), "localise": "nin.cifar10", "names": ("brick=cat",)}
    with pytest.raises(UserError, match=r"localise=nin\.cifar10: no test picture has a class that it knows"):
        main.run(few(root, **keys), {}, tmp_path / "run")


def test_context_of_few_pictures(tmp_path: Path) -> None:
    root = own(tmp_path / "yard")
    assert main.run(few(root, 6, context=True), {}, tmp_path / "run")["pictures"] == [3, 3]
    with pytest.raises(UserError, match="context=True: one training picture has no neighbours"):
        main.run(few(root, 2, context=True), {}, tmp_path / "run")


@pytest.mark.parametrize("everywhere", [True, False])
def test_proposals_that_leave_nothing_to_tell_objects_from(everywhere: bool, tmp_path: Path) -> None:
    """All of them are objects, or there is none."""
    root = own(tmp_path / "yard")
    experiment = few(root)
    train, test = pictures.read(experiment)
    boxes = {o.name: o.boxes[:1].tolist() if everywhere else [] for part in (train, test) for o in part.listed}
    (tmp_path / "proposals.json").write_text(json.dumps(boxes))
    with pytest.raises(UserError, match="nothing is left to tell its objects from"):
        main.run(few(root, **{"proposals.source": str(tmp_path / "proposals.json")}), {}, tmp_path / "run")


@pytest.mark.parametrize("keys", [{"maps": ()}, {"enlarge": ()}, {"enlarge": (0.0,)}, {"enlarge": (1.0, "2")}])
def test_no_map_and_no_scale_are_refused(keys: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{next(iter(keys))}=.*one at least"):
        asked(tmp_path, **keys)


def test_the_directory_of_a_training_is_left_alone(tmp_path: Path) -> None:
    """Its run could not be resumed with another config.json."""
    root, kept = own(tmp_path / "yard"), '{"model": {"name": "nin"}, "seed": 0}'
    (tmp_path / "run").mkdir()
    for text in (kept, "[]", "half a fi"):
        (tmp_path / "run/config.json").write_text(text)
        with pytest.raises(UserError, match=r"run: its config\.json is not of a detection; choose another --workdir"):
            main.run(few(root), {}, tmp_path / "run")
        assert [(file.name, file.read_text()) for file in (tmp_path / "run").iterdir()] == [("config.json", text)]


def test_features_that_another_experiment_writes_at_the_same_time(tmp_path: Path, monkeypatch: Any) -> None:
    """What one has moved to its place is not missed by the other."""
    root, real = own(tmp_path / "yard"), np.savez

    def savez(*given: Any, **arrays: Any) -> None:
        real(*given, **arrays)
        for scratch in (tmp_path / "shared").rglob("*.part.npz"):
            scratch.unlink()

    monkeypatch.setattr(np, "savez", savez)
    main.run(few(root, features=str(tmp_path / "shared")), {}, tmp_path / "run")
    assert len([*(tmp_path / "shared").rglob("*.npz")]) == 2 * COUNT
