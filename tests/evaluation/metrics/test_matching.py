"""COCO's matching against pycocotools, on detections drawn so that all of its rules matter."""

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from efficientsam_pl.evaluation.metrics.average_precision import coco_average_precision
from efficientsam_pl.evaluation.metrics.matching import averages, matched
from efficientsam_pl.evaluation.metrics.overlaps import (
    Detected,
    ImageOverlaps,
    Objects,
    overlaps_of,
)


def drawn(seed: int, images: int = 6, categories: int = 3) -> tuple[dict[str, Any], list[Any]]:
    """Boxes on a coarse grid, so that many are alike; crowds; few different scores."""
    draw = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in range(1, images + 1):
        for category in range(1, categories + 1):
            for _ in range(draw.integers(0, 12)):
                x, y = (20 * draw.integers(0, 5, 2)).tolist()
                w, h = (32 * draw.integers(1, 5, 2)).tolist()  # areas on the ranges' borders too
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image,
                        "category_id": category,
                        "bbox": [x, y, w, h],
                        "area": float(w * h),
                        "iscrowd": int(draw.random() < 0.15),
                    }
                )
            for _ in range(draw.choice([0, 5, 130])):  # more than COCO looks at
                x, y = (10 * draw.integers(0, 10, 2)).tolist()
                w, h = (16 * draw.integers(1, 10, 2)).tolist()
                score = float(draw.integers(0, 8)) / 8
                results.append(
                    {"image_id": image, "category_id": category, "bbox": [x, y, w, h]}
                    | {"score": score}
                )
    truth = {
        "images": [{"id": i, "height": 300, "width": 300} for i in range(1, images + 1)],
        "annotations": annotations,
        "categories": [{"id": i} for i in range(1, categories + 2)],  # one that nothing is of
    }
    return truth, results


def by_pycocotools(truth: dict[str, Any], results: list[Any]) -> list[float]:
    coco = COCO()
    coco.dataset = {**truth, "annotations": [dict(a) for a in truth["annotations"]]}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes([dict(r) for r in results]), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    stats: list[float] = evaluation.stats.tolist()
    return stats


@pytest.mark.parametrize("seed", range(12))
def test_drawn_boxes_score_what_pycocotools_gives(seed: int) -> None:
    truth, results = drawn(seed)
    expected = by_pycocotools(truth, results)
    assert len(set(expected)) > 6
    assert coco_average_precision(truth, results, "bbox") == pytest.approx(expected, abs=1e-12)


def overlaps(
    iou: np.ndarray, scores: list[float], crowd: list[bool], image_id: int = 1
) -> ImageOverlaps:
    """An image whose detections and objects are of one category and 5000 pixels each."""
    detections, objects = iou.shape
    return overlaps_of(
        image_id,
        Detected(
            np.ones(detections, dtype=np.int64),
            np.array(scores, dtype=np.float64),
            np.full(detections, 5000.0),
            np.zeros(detections, dtype=bool),
        ),
        Objects(np.ones(objects, dtype=np.int64), np.full(objects, 5000.0), np.array(crowd, bool)),
        lambda some, own: iou[np.ix_(some, own)],
        100,
    )


def test_each_object_is_found_once_and_a_crowd_often() -> None:
    iou = np.array([[0.9, 0.0], [0.8, 0.0], [0.0, 0.7], [0.0, 0.6]])
    found = matched([overlaps(iou, [0.9, 0.8, 0.7, 0.6], [False, True])])
    at_half = np.s_[:, 0, 0]  # all areas, IoU 0.5
    assert found.hit[at_half].tolist() == [True, False, True, True]
    assert found.ignored[at_half].tolist() == [False, False, True, True]
    assert found.wanted.sum(0).tolist() == [1, 0, 1, 0]


def test_a_detection_takes_what_a_better_one_has_left() -> None:
    iou = np.array([[0.7, 0.9], [0.6, 0.8]])  # in the file's order; the second one is sure
    found = matched([overlaps(iou, [0.1, 0.2], [False, False])])
    hits = found.hit[:, 0].sum(1)  # thresholds 0.5, 0.55, ... at which they hit
    assert found.scores.tolist() == [0.2, 0.1]
    assert hits.tolist() == [7, 7]  # 0.8 of the second object; then 0.7 of the first, or from
    # 0.85 on 0.9 of the second, which is free again: 0.5..0.7 are five, 0.85 and 0.9 two


def test_hundred_detections_are_looked_at_the_first_of_equals_first() -> None:
    image = overlaps(np.zeros((151, 0)), [0.5] * 150 + [0.6], [])
    assert image.detected.scores.tolist() == [0.6] + [0.5] * 99
    assert image.rank.tolist() == list(range(100))


def test_shuffled_images_score_the_same() -> None:
    draw = np.random.default_rng(3)
    images = [
        overlaps(draw.random((5, 4)), (draw.integers(0, 3, 5) / 3).tolist(), [False] * 4, number)
        for number in range(20)
    ]
    shuffled = [images[place] for place in draw.permutation(20)]
    assert averages(images, [1]) == averages(shuffled, [1])


def test_an_image_counts_once() -> None:
    image = overlaps(np.ones((1, 1)), [0.5], [False], image_id=7)
    with pytest.raises(ValueError, match="image 7 is scored twice"):
        averages([image, image], [1])


def test_nothing_at_all_has_no_average() -> None:
    assert averages([], []) == averages([], [1]) == (-1,) * 12
