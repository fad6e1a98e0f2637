"""R-CNN from pictures to average precision, on scenes of digits and a network that comes with the package."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from nin_jax import storage
from nin_jax.data.objects import proposals
from nin_jax.data.objects.boxes import iou
from nin_jax.detection import (
    config,
    context,
    detector,
    features,
    main,
    pictures,
    pipeline,
    report_page,
    store,
    svm,
)
from nin_jax.errors import UserError
from nin_jax.training.average_precision import Found
from nin_jax.weights import zoo

WORDS = (
    *("detection", "--config=detect_scenes", "--config.scenes.dataset=digits", "--config.scenes.side=24"),
    *(
        "--config.scenes.train=16",
        "--config.scenes.test=8",
        "--config.networks=('nin.digits',)",
        "--config.maps=('cccp2',)",
    ),
    *("--config.localise=nin.digits", "--config.fewest_boxes=2", "--config.proposals.smallest=0.3"),
    *("--config.scenes.smallest=1.0", "--config.proposals.scales=3", "--config.context=True"),
)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """The folder and the report of a run."""
    folder = tmp_path_factory.mktemp("detection") / "run"
    main.main([*WORDS, f"--workdir={folder}"])
    return folder, json.loads((folder / "report.json").read_text())


def test_a_run_reports_every_class_and_beats_boxes_that_know_nothing(done: tuple[Path, dict]) -> None:
    folder, report = done
    assert report["pictures"] == [16, 8]
    assert 10 < report["map_pct"] <= 100
    assert report["map_pct"] == pytest.approx(np.mean([c["ap_pct"] for c in report["classes"].values() if c["test"]]))
    found = json.loads((folder / "detections.json").read_text())
    assert found.keys() == report["classes"].keys()
    for scores in ([row[0] for row in rows] for of in found.values() for rows in of.values()):
        assert scores == sorted(scores, reverse=True)
    assert report["localisation"]["asked"] == 13
    assert report["localisation"]["pointing_pct"] >= report["localisation"]["centre_pointing_pct"]


def test_a_run_writes_a_page_that_loads_nothing(done: tuple[Path, dict]) -> None:
    folder, report = done
    page = (folder / "report.html").read_text()
    assert len(page) < 2**20
    assert "default-src 'none'" in page
    assert "<script" not in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert f"mAP {report['map_pct']:.2f} %" in page
    assert page.count("<polyline") == sum(of["ap_pct"] is not None for of in report["classes"].values())
    assert report["experiment"] == "detect_scenes"
    assert 50 < report["proposals"]["recall_pct"] <= 100


def test_places_alone_need_no_features(done: tuple[Path, dict], tmp_path: Path) -> None:
    """The same localisation as with detection, measured once: what is kept is taken again."""
    folder, report = done
    words = [w.replace("=detect_scenes", "=detect_scenes:places") for w in WORDS if "networks" not in w]
    (tmp_path / "localisation.json").write_bytes((folder / "localisation.json").read_bytes())
    kept = (tmp_path / "localisation.json").stat().st_mtime_ns
    main.main([*words, f"--workdir={tmp_path}"])
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["localisation"] == report["localisation"]
    assert "map_pct" not in found
    assert (tmp_path / "localisation.json").stat().st_mtime_ns == kept
    assert not (tmp_path / "features").exists()


def test_the_detector_of_a_run_finds_what_the_run_found(done: tuple[Path, dict]) -> None:
    folder, _ = done
    words = [*(w for w in WORDS if "context" not in w), "--config.context=False"]
    main.main([*words, f"--workdir={folder.parent}/plain", f"--config.features={folder}/features"])
    kept = json.loads((folder.parent / "plain/detections.json").read_text())
    plain: Any = main.parse([*words])[0]
    _, test = pictures.read(config.check(plain))
    found = detector.Detector(folder.parent / "plain")
    for name, of in zip(found.machines.classes, found(test.image(0)), strict=True):
        rows = np.array(kept[name]["test00000"])
        np.testing.assert_allclose(of.scores[:5], rows[:5, 0], atol=2e-3)  # kept features are float16
    (folder.parent / "plain/detector.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match="is not a finished run of detection"):
        detector.Detector(folder.parent / "plain")


def test_errors_are_told_apart_by_kind() -> None:
    boxes = np.array([[0, 0, 10, 10], [50, 50, 60, 60], [80, 0, 90, 10.0]])
    objects = pictures.Objects("a", (100, 100), boxes, np.array([0, 1, 0], np.int32), np.array([False, False, True]))
    seen = np.array([[0, 0, 10, 11], [0, 0, 11, 10], [0, 5, 10, 20], [50, 50, 60, 60], [30, 30, 40, 40], boxes[2]])
    found = {"a": Found(seen, np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4]))}
    wrong, right = report_page.errors(0, "cat", found, [objects], first=9)
    assert right == 1
    assert [e.kind for e in wrong] == ["duplicate", "localisation", "confusion", "background"]
    wrong, right = report_page.errors(0, "cat", found, [objects], first=2)
    assert (right, [e.kind for e in wrong]) == (1, ["duplicate"])


def test_a_second_start_computes_what_is_missing_and_ends_with_the_same(done: tuple[Path, dict]) -> None:
    folder, report = done
    kept = (folder / "detections.json").read_text()
    assert len(list((folder / "features").glob("boxes-*/*.npz"))) == 24
    files = sorted((folder / "features").glob("nin.digits-*/*.npz"))
    assert len(files) == 24
    files[3].unlink()
    files[5].write_bytes(files[5].read_bytes()[:1000])  # as a full disk leaves it
    times = {file: file.stat().st_mtime_ns for file in files if file.exists()}
    main.main([*WORDS, f"--workdir={folder}"])
    assert (folder / "detections.json").read_text() == kept
    again = json.loads((folder / "report.json").read_text())
    assert {k: again[k] for k in ("map_pct", "classes", "localisation")} == {
        k: report[k] for k in ("map_pct", "classes", "localisation")
    }
    assert [f for f, t in times.items() if f.stat().st_mtime_ns != t] == [files[5]]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--config.networks=('nin.digit',)"], "nin.digits"),
        (["--config.maps=('cccp9',)"], "map 'cccp9'"),
        (["--config.data=voc"], "path: data='voc' needs it"),
        (["--config.data=voc", "--config.path=nowhere"], "nowhere has no folder Annotations"),
        (["--config.fewest_boxes=1000"], "no class has as many training boxes"),
        (["--config.proposals.source=nowhere.json"], "nowhere.json"),
        (["--config.scenes.sides=9"], "sides"),
        (["--config.names=('5=six',)"], "names=5=six"),
        (["--config.scenes.side=11"], "scenes.side=11: objects of digits have up to 12 pixels a side"),
        (["--config.scenes.dataset=scenes(of='digits', side=24)"], "with one label an image"),
    ],
)
def test_mistakes_get_one_line(words: list[str], line: str, tmp_path: Path) -> None:
    given = {word.split("=")[0] for word in words}  # a tuple that is given twice becomes one longer tuple
    with pytest.raises(UserError) as error:
        main.main([*(w for w in WORDS if w.split("=")[0] not in given), f"--workdir={tmp_path}", *words])
    assert line in str(error.value)
    assert "\n" not in str(error.value)
    assert {file.name for file in tmp_path.iterdir()} <= {"config.json"}  # nothing was computed before


def test_windows_lie_inside_and_find_most_objects() -> None:
    windows = proposals.sliding_windows(100, 60)
    assert (windows[:, :2] >= 0).all()
    assert (windows[:, 2:] <= [100 + 1e-9, 60 + 1e-9]).all()
    random = np.random.default_rng(0)
    size = random.uniform(15, 55, (500, 2))
    corner = random.uniform(0, 1, (500, 2)) * (np.array([100, 60]) - size)
    objects = np.concatenate([corner, corner + size], axis=1)
    assert (iou(objects, windows).max(1) >= 0.5).mean() > 0.9


def test_proposals_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "boxes.json"
    file.write_text('{"a": [[0, 0, 5, 6.5]]}')
    assert proposals.from_file(file)["a"].tolist() == [[0, 0, 5, 6.5]]
    for text in ('{"a": [[3, 0, 2, 5]]}', "[]", '{"a": [[1, 2]]}', "{", '{"a": [[0, 0, NaN, 1]]}'):
        file.write_text(text)
        with pytest.raises(UserError, match="proposals="):
            proposals.from_file(file)


def test_warping_is_what_pillow_makes_of_the_region() -> None:
    """Enlarged, linear interpolation is the same; outside the picture lies its mean, here 0."""
    image = np.random.default_rng(0).uniform(0, 255, (40, 50, 3)).astype(np.float32)
    box = np.array([[10.0, 5, 26, 21]], np.float32)
    warped = np.asarray(features.warp(jnp.asarray(image), jnp.asarray(box), 32, context=0.0))[0]
    channel = Image.fromarray(image[..., 1]).resize((32, 32), Image.Resampling.BILINEAR, box=(10, 5, 26, 21))
    np.testing.assert_allclose(warped[2:-2, 2:-2, 1], np.asarray(channel)[2:-2, 2:-2], atol=1e-2)
    around = np.asarray(features.warp(jnp.asarray(image), jnp.asarray(box), 32, context=0.25))[0]
    np.testing.assert_allclose(around[8:24, 8:24, 1].mean(), image[5:21, 10:26, 1].mean(), rtol=0.02)  # the middle half
    outside = np.asarray(features.warp(jnp.asarray(image), jnp.asarray([[-40.0, -40, 0, 0]]), 32, context=0.0))
    np.testing.assert_allclose(outside, 0, atol=1e-3)


def test_pooling_averages_cells() -> None:
    maps = jnp.arange(2 * 5 * 4 * 3, dtype=jnp.float32).reshape(2, 5, 4, 3)
    pooled = np.asarray(features.pooled(maps, 2))
    assert pooled.shape == (2, 12)
    np.testing.assert_allclose(pooled[:, :3], np.asarray(maps)[:, :2, :2].mean((1, 2)))
    np.testing.assert_allclose(pooled[:, 9:], np.asarray(maps)[:, 2:, 2:].mean((1, 2)))


def test_gradients_of_a_stripe_point_one_way() -> None:
    images = np.zeros((1, 32, 32, 3), np.uint8)
    images[:, :, 12:20] = 255  # its edges are vertical, so gradients are horizontal: orientation 0
    found = np.asarray(features.hog().features(jnp.asarray(images))).reshape(3, 3, 4, 9)
    assert found[..., 0].sum() > 0
    np.testing.assert_allclose(found[..., 1:], 0, atol=1e-6)


def test_mining_finds_the_classifier_of_all_negatives() -> None:
    random = np.random.default_rng(0)
    direction = random.normal(size=20)
    positives = (random.normal(size=(40, 20)) * 4 + direction * 4).astype(np.float32)
    negatives = (random.normal(size=(60, 100, 20)) * 4 - direction).astype(np.float32)
    mined, everything = svm.train(positives, negatives), svm.fit(positives, negatives.reshape(-1, 20))
    cosine = mined.weights @ everything.weights / np.linalg.norm(mined.weights) / np.linalg.norm(everything.weights)
    assert cosine > 0.98


def test_regression_learns_a_shift() -> None:
    random = np.random.default_rng(0)
    boxes = np.concatenate([random.uniform(0, 50, (200, 2)), random.uniform(60, 100, (200, 2))], axis=1)
    features_ = (random.normal(size=(200, 5)) * 20).astype(np.float32)
    size = boxes[:, 2:] - boxes[:, :2]
    targets = boxes + np.tile(size, 2) * features_[:, :1] / 200  # as far as the first feature says
    learned = svm.regress(features_, boxes, targets)
    assert learned
    np.testing.assert_allclose(learned(features_, boxes), targets, atol=1.0)
    assert svm.regress(features_[:9], boxes[:9], targets[:9]) is None


def test_context_raises_what_the_neighbours_have() -> None:
    random = np.random.default_rng(0)
    labels = np.zeros((60, 2), bool)
    labels[:30, 0], labels[30:, 1] = True, True
    outputs = labels + random.normal(0, 0.1, (60, 2))
    corrections = context.corrections(outputs, labels, np.array([[1.0, 0.0], [0.0, 1.0]]))
    assert corrections[0, 0] > 0 > corrections[0, 1]
    assert corrections[1, 1] > 0 > corrections[1, 0]
    np.testing.assert_allclose(corrections[0, 0], context.STRENGTH * np.log((20 + 0.5) / 21 / 0.5))


def test_voc_pictures_are_read_and_a_wrong_size_is_refused(tmp_path: Path) -> None:
    from tests.data.objects.test_annotations import OBJECT, devkit

    root = devkit(tmp_path / "d", OBJECT.format(1, 1, 10, 20, name="cat", difficult=0))
    (root / "ImageSets/Main/trainval.txt").write_text("")
    plain: Any = config.default()
    plain.data, plain.path = "voc", str(root)
    _, test = pictures.read(config.check(plain))
    assert test.image(0).shape == (30, 40, 3)
    Image.new("RGB", (30, 40)).save(root / "JPEGImages/000001.jpg")
    with pytest.raises(UserError, match="30 x 40 pixels, but its boxes are for 40 x 30"):
        test.image(0)
    (root / "ImageSets/Main/trainval.txt").write_text("000001\n")
    with pytest.raises(UserError, match="1 pictures are in both splits"):
        pictures.read(config.check(plain))


def parts(folder: Path, **changes: Any) -> list[str]:
    """The folders of features of an experiment on digits, with the defaults changed."""
    plain: Any = config.default()
    plain.networks, plain.maps, plain.scenes.dataset = ("nin.digits", "hog"), ("cccp2",), "digits"
    plain.update(changes)
    return [part.name for part in store.Store(folder, config.check(plain)).parts]


def test_features_are_kept_apart_by_what_made_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = parts(tmp_path)
    assert parts(tmp_path) == first
    assert parts(tmp_path, networks=("hog",)) == first[1:]  # a network's files serve every experiment that has it
    boxes = tmp_path / "boxes.json"
    seen = {tuple(first)}
    for text in ('{"a": [[0, 0, 5, 5]]}', '{"a": [[0, 0, 5, 6]]}'):  # the same name, other boxes
        boxes.write_text(text)
        seen.add(tuple(parts(tmp_path, proposals={"source": str(boxes)})))
    for changes in ({"proposals": {"stride": 0.5}}, {"seed": 1}, {"scenes": {"side": 48}}):
        seen.add(tuple(parts(tmp_path, **changes)))
    assert len(seen) == 6
    assert not any(set(a) & set(b) for a, b in itertools.combinations(sorted(seen), 2))
    assert parts(tmp_path, grid=1)[1:] == first[1:]  # of the baseline, which has no maps
    network = zoo.load("nin.digits")
    monkeypatch.setattr(network, "config", dataclasses.replace(network.config, preprocess=()))
    monkeypatch.setattr(network, "stats", ())
    monkeypatch.setattr(zoo, "load", lambda name: network)
    assert parts(tmp_path)[0] != first[0]
    assert parts(tmp_path)[1] == first[1]


def test_features_follow_the_pictures_and_their_boxes(tmp_path: Path) -> None:
    from tests.data.objects.test_annotations import OBJECT, devkit

    def filled() -> tuple[store.Store, pictures.Pictures]:
        _, test = pictures.read(config.check(plain))
        kept = store.Store(tmp_path / "features", config.check(plain))
        kept.fill(test, "test")
        return kept, test

    root = devkit(tmp_path / "d", OBJECT.format(1, 1, 10, 20, name="cat", difficult=0))
    (root / "ImageSets/Main/trainval.txt").write_text("")
    plain: Any = config.default()
    plain.data, plain.path, plain.networks, plain.proposals.scales = "voc", str(root), ("colour",), 2
    kept, test = filled()
    first = kept.read(test, 0)
    Image.new("RGB", (40, 30), "red").save(root / "JPEGImages/000001.jpg")
    kept, test = filled()
    second = kept.read(test, 0)
    assert np.array_equal(first.boxes, second.boxes)
    np.testing.assert_allclose(second.features[-1].reshape(-1, 3).mean(0), [254 / 255, 0, 0], atol=0.01)
    xml = root / "Annotations/000001.xml"
    xml.write_text(xml.read_text().replace("<xmax>10<", "<xmax>12<"))
    kept, test = filled()
    assert kept.read(test, 0).boxes[0].tolist() == [0, 0, 12, 20]


STAGES = {  # an experiment's stages, in order, and how often each is called before the interruption
    "proposals": (proposals, "sliding_windows", 3),
    "features": (features.Extractor, "__call__", 9),
    "classifiers": (svm, "train", 1),
    "regression": (svm, "regress", 2),
    "measures": (pipeline, "precision_recall", 3),
    "files": (storage, "write_json", 1),
}


@pytest.mark.parametrize("stage", STAGES)
def test_interrupted_at_any_stage_it_goes_on_to_the_same_end(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, colours: tuple[list[str], str]
) -> None:
    where, name, calls = STAGES[stage]
    words, wanted = colours
    count, whole = itertools.count(), getattr(where, name)

    def interrupted(*arguments: Any, **named: Any) -> Any:
        if next(count) == calls:
            raise KeyboardInterrupt
        return whole(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(where, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            main.main([*words, f"--workdir={tmp_path}"])
    assert not (tmp_path / "detections.json").exists()
    main.main([*words, f"--workdir={tmp_path}"])
    assert (tmp_path / "detections.json").read_text() == wanted


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], str]:
    """The words of a small experiment without a network, and the detections of a run that was not interrupted."""
    changed = {"--config.networks": "('colour',)", "--config.localise": "None", "--config.context": "False"}
    kept = [word for word in WORDS if word.split("=")[0] not in {*changed, "--config.maps"}]
    words = [*kept, *(f"{key}={value}" for key, value in changed.items())]
    folder = tmp_path_factory.mktemp("colours")
    main.main([*words, f"--workdir={folder}"])
    return words, (folder / "detections.json").read_text()


def test_averages_over_cells_of_boxes() -> None:
    maps = np.random.default_rng(0).normal(size=(12, 10, 3)).astype(np.float32)
    boxes = np.array([[1, 2, 5, 8], [0, 0, 10, 12], [2.25, 3.0, 2.75, 4.0]], np.float32)
    found = np.asarray(features.averaged(jnp.asarray(maps), jnp.asarray(boxes), 2)).reshape(3, 2, 2, 3)
    np.testing.assert_allclose(found[0, 0, 1], maps[2:5, 3:5].mean((0, 1)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found[1, 1, 1], maps[6:, 5:].mean((0, 1)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found[2], np.broadcast_to(maps[3, 2], (2, 2, 3)), rtol=1e-4)  # inside of one pixel


def test_features_of_maps_are_averages_of_the_maps_of_the_picture() -> None:
    """A box of the network's size takes the picture's maps at scale 1."""
    network = zoo.load("nin.digits")
    source = features.network(network, "cccp2", 2)
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    boxes = np.array([[0.0, 0, 64, 64], [8, 8, 16, 16], [0, 0, 64, 32]])
    found = features.Extractor(source, finest=1.0)(picture, boxes)
    direct = np.asarray(source.maps(jnp.asarray(picture.mean(-1, keepdims=True).round().astype(np.uint8))[None]))[0]
    eighth = len(direct) // 8
    middle = direct[eighth : 2 * eighth, eighth : 2 * eighth].mean((0, 1))
    np.testing.assert_allclose(found[1].reshape(4, -1).mean(0), middle, rtol=1e-3, atol=1e-4)
    assert found.shape == (3, 4 * direct.shape[-1])
