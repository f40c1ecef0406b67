"""Detections of objects whose annotations cannot be used: neither right nor wrong in AP."""

from typing import Any

import pytest

from efficientsam_pl.data.coco.instances import read_instances
from efficientsam_pl.evaluation.metrics.matching import averages
from efficientsam_pl.evaluation.metrics.overlaps import PredictedMasks, coco_overlaps
from efficientsam_pl.rle import Rle, from_coco
from tests.data.coco.conftest import Write, annotation_record, coco_file, image_record

FIRST, SECOND = [[0, 0, 20, 0, 20, 20, 0, 20]], [[40, 30, 70, 30, 70, 50, 40, 50]]


def mask(polygons: Any) -> Rle:
    return from_coco(polygons, 60, 80)


@pytest.mark.parametrize(
    ("second", "ap"),
    [
        ({"segmentation": SECOND}, 1.0),
        ({"segmentation": [[1, 2, 3, 4]]}, 1.0),
        ({"segmentation": None}, 1.0),
        ({"bbox": [40, 30, 30, 20]}, 1.0),
        ({"segmentation": SECOND, "category_id": None}, 1.0),
        ({"segmentation": [[1, 2]], "category_id": float("nan")}, 1.0),
        ({"segmentation": SECOND, "iscrowd": "perhaps"}, 1.0),
        # Not in the list: a detection of category 1 there is wrong. It comes first, so precision
        # is 1/2 at the one object of category 1 that there is
        ({"segmentation": [[1, 2]], "category_id": 77}, 0.5),
        # Of category 9 alone: the same, and nothing of category 9 is there to be found
        ({"segmentation": [[1, 2]], "category_id": 9}, 0.5),
    ],
)
def test_a_perfect_detector_scores_one_although_an_annotation_is_broken(
    write: Write, second: dict[str, Any], ap: float
) -> None:
    broken = {"id": 2, "image_id": 1, "category_id": 1} | second
    content = coco_file(
        images=[image_record(1)],
        annotations=[annotation_record(1, segmentation=FIRST), broken],
    )
    [image] = read_instances(*write(content), "coco").images
    predicted = PredictedMasks([1, 1], [mask(SECOND), mask(FIRST)], [0.9, 0.8])
    assert averages([coco_overlaps(image, predicted)], [1, 9]).ap == pytest.approx(ap)
