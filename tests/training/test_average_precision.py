"""The measures of detection, against pycocotools where its rules are the same, and against cases made by hand."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest

from nin_jax.training.average_precision import (
    Found,
    Truth,
    eleven_points,
    ilsvrc_overlap,
    precision_recall,
    ranking,
    under_curve,
)


def truth(*boxes: tuple[float, ...], difficult: tuple[int, ...] = ()) -> Truth:
    return Truth(np.array(boxes, float).reshape(-1, 4), np.array([i in difficult for i in range(len(boxes))], bool))


def found(*rows: tuple[float, ...]) -> Found:
    """Rows of (score, x0, y0, x1, y1)."""
    return Found(np.array(rows, float).reshape(-1, 5)[:, 1:], np.array(rows, float).reshape(-1, 5)[:, 0])


def random_case(seed: int) -> tuple[dict[str, Truth], dict[str, Found]]:
    """Objects far from each other, so that no detection could belong to two; some missed, found twice, or off."""
    random = np.random.default_rng(seed)
    objects, detections = {}, {}
    for picture in range(random.integers(1, 6)):
        boxes, rows = [], []
        for place in range(random.integers(0, 4)):
            x, y = 100 * place + random.integers(0, 20), random.integers(0, 20)
            boxes.append((x, y, x + 40, y + 40))
            for _ in range(random.integers(0, 3)):
                dx, dy = random.integers(-25, 26, 2)
                rows.append((random.random(), x + dx, y + dy, x + dx + 40, y + dy + 40))
        rows += [(random.random(), 500, y, 540, y + 40) for y in range(0, 100 * int(random.integers(0, 3)), 100)]
        objects[str(picture)], detections[str(picture)] = truth(*boxes), found(*rows)
    return objects, detections


def coco_precision(objects: dict[str, Truth], detections: dict[str, Found], points: np.ndarray) -> float:
    """pycocotools' average precision at an overlap of 0.5."""
    pycocotools = pytest.importorskip("pycocotools.coco")
    from pycocotools.cocoeval import COCOeval

    def row(picture: str, box: np.ndarray) -> dict[str, object]:
        x0, y0, x1, y1 = box.tolist()
        size = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
        return {"image_id": int(picture), "category_id": 1, "iscrowd": 0, **size}

    listed = [row(picture, box) for picture, of in objects.items() for box in of.boxes]
    scored = [
        {**row(picture, box), "score": score}
        for picture, of in detections.items()
        for box, score in zip(of.boxes, of.scores.tolist(), strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = pycocotools.COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": int(picture)} for picture in objects],
            "categories": [{"id": 1}],
            "annotations": [{**r, "id": i + 1} for i, r in enumerate(listed)],
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(scored), "bbox")
        evaluation.params.iouThrs, evaluation.params.recThrs = np.array([0.5]), points
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    return float(evaluation.eval["precision"][0, :, 0, 0, -1].mean())


def test_the_average_precision_of_2007_is_that_of_pycocotools() -> None:
    compared = 0
    for seed in range(220):
        objects, detections = random_case(seed)
        if not any(len(of.boxes) for of in objects.values()) or not any(len(of.scores) for of in detections.values()):
            continue
        expected = coco_precision(objects, detections, np.linspace(0, 1, 11))
        assert eleven_points(precision_recall(objects, detections)) == pytest.approx(expected, abs=1e-9), seed
        compared += 1
    assert compared >= 190


def test_the_area_is_that_of_pycocotools_at_many_recalls() -> None:
    objects, detections = random_case(7)
    expected = coco_precision(objects, detections, np.linspace(0, 1, 10001))
    assert under_curve(precision_recall(objects, detections)) == pytest.approx(expected, abs=2e-4)


def test_a_second_detection_of_an_object_is_wrong_even_where_another_is_free() -> None:
    """VOC's rule. The second box overlaps the left object by 0.6 and the right one, which is free, by 0.5."""
    objects = {"a": truth((0, 0, 10, 10), (3, 0, 13, 10))}
    detections = {"a": found((0.9, 0, 0, 10, 10), (0.8, 1, 0, 11, 10))}
    curve = precision_recall(objects, detections)
    assert curve.precision.tolist() == [1, 0.5]
    assert curve.recall.tolist() == [0.5, 0.5]
    assert precision_recall(objects, detections, "ilsvrc").recall.tolist() == [0.5, 1.0]  # it takes the free one


def test_difficult_objects_count_as_nothing() -> None:
    objects = {"a": truth((0, 0, 10, 10), (50, 0, 60, 10), difficult=(1,))}
    detections = {"a": found((0.9, 50, 0, 60, 10), (0.8, 50, 0, 60, 10), (0.7, 0, 0, 10, 10))}
    curve = precision_recall(objects, detections)
    assert curve.precision.tolist() == [1.0]
    assert curve.recall.tolist() == [1.0]


def test_an_overlap_of_exactly_a_half_is_enough() -> None:
    assert precision_recall({"a": truth((0, 0, 10, 10))}, {"a": found((1, 0, 0, 10, 5))}).recall.tolist() == [1.0]
    assert precision_recall({"a": truth((0, 0, 10, 10))}, {"a": found((1, 0, 0, 10, 4.9))}).recall.tolist() == [0.0]


def test_recalls_are_compared_exactly() -> None:
    """Ten objects, one found: precision 1 at recall 0 and 0.1, and nothing beyond."""
    objects = {str(i): truth((0, 0, 10, 10)) for i in range(10)}
    assert eleven_points(precision_recall(objects, {"0": found((1, 0, 0, 10, 10))})) == pytest.approx(2 / 11)
    three = {str(i): found((1 - i / 10, 0, 0, 10, 10)) for i in range(3)}
    assert eleven_points(precision_recall(objects, three)) == pytest.approx(3 / 11)  # 3 / 10 < 3 * 0.1 in float64


def test_pictures_without_the_class_bring_wrong_detections_and_no_object() -> None:
    curve = precision_recall({}, {"a": found((1, 0, 0, 10, 10))})
    assert curve.precision.tolist() == [0.0]
    assert curve.recall.tolist() == [0.0]
    assert eleven_points(precision_recall({"a": truth((0, 0, 1, 1))}, {})) == 0


def test_small_objects_of_ilsvrc_need_less_overlap() -> None:
    objects = np.array([[0.0, 0, 100, 100], [0, 0, 10, 10], [5, 5, 15, 25]])
    np.testing.assert_allclose(ilsvrc_overlap(objects), [0.5, 100 / 400, 200 / (20 * 30)])


def test_a_ranking_of_pictures() -> None:
    curve = ranking([0.9, 0.8, 0.7, 0.6], [1, 0, -1, 1])
    assert curve.precision.tolist() == pytest.approx([1, 1 / 2, 2 / 3])
    assert curve.recall.tolist() == [0.5, 0.5, 1.0]
