"""COCO's average precision: from result records, and as a metric over run-lengths."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from efficientsam_pl.evaluation.metrics.image_lines import ImageLines
from efficientsam_pl.evaluation.metrics.matching import AveragePrecision, averages
from efficientsam_pl.evaluation.metrics.overlaps import (
    COCO_DETECTIONS,
    Detected,
    ImageOverlaps,
    Objects,
    compare_shapes,
    overlaps_of,
)
from efficientsam_pl.rle import Rle, areas, from_coco

_ANY = 1  # the category of class-agnostic masks


def coco_average_precision(
    ground_truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    iou_type: Literal["segm", "bbox"],
) -> AveragePrecision:
    """Average precision over every image and category of a COCO ground truth.

    Args:
        ground_truth: Content of a COCO annotation file; it is not changed.
        results: COCO result records (image_id, category_id, score, and segmentation or bbox).
            An empty list scores 0.
        iou_type: Whether masks or boxes are compared.

    Raises:
        ValueError: A result for an image that the ground truth does not have.
    """
    sizes = {i["id"]: (i.get("height", 0), i.get("width", 0)) for i in ground_truth["images"]}
    unknown = {r["image_id"] for r in results} - sizes.keys()
    if unknown:
        raise ValueError(f"results for images without ground truth: {sorted(unknown)[:5]}")
    objects, detections = _by_image(ground_truth["annotations"]), _by_image(results)
    return averages(
        (
            _overlaps(image_id, objects[image_id], detections[image_id], iou_type, image_hw)
            for image_id, image_hw in sizes.items()
        ),
        sorted({category["id"] for category in ground_truth["categories"]}),
    )


class MaskAp(ImageLines):
    """Class-agnostic mask AP over all ranks, each image scored once even if several ranks saw it.

    Source:
        Lin et al. 2014 (Microsoft COCO) by pycocotools, with a single category, no
        crowds, and areas counted in pixels at the size of the run-lengths.
    """

    def update(
        self,
        image_id: str,
        truth: Sequence[Rle],
        detections: Sequence[Rle],
        scores: Float[Tensor, "n"],
    ) -> None:
        """Add an image.

        Raises:
            ValueError: Scores and detections differ in number, or run-lengths in size.
        """
        if len(scores) != len(detections):
            raise ValueError(f"{len(scores)} scores for {len(detections)} detections")
        sizes = {tuple(rle["size"]) for rle in (*truth, *detections)}
        if len(sizes) > 1:
            raise ValueError(f"masks of image {image_id} have several sizes: {sorted(sizes)}")
        self.add_line(image_id, [truth, detections, scores.tolist()])

    def compute(self) -> AveragePrecision:
        """Compute the twelve numbers so far, the same on every rank."""
        return averages((_of_line(n, line) for n, line in enumerate(self.lines_once())), [_ANY])


def _of_line(number: int, line: str) -> ImageOverlaps:
    """Compute the overlaps in an image from its line of the state."""
    _, truth, detections, scores = json.loads(line)
    crowd = np.zeros(len(truth), dtype=bool)
    return overlaps_of(
        number,
        Detected(
            np.full(len(scores), _ANY),
            np.array(scores, dtype=np.float64),
            areas(detections),
            np.zeros(len(scores), dtype=bool),
        ),
        Objects(np.full(len(truth), _ANY), areas(truth), crowd),
        compare_shapes(detections, truth, crowd),
        COCO_DETECTIONS,
    )


def _overlaps(
    image_id: int,
    objects: Sequence[Mapping[str, Any]],
    results: Sequence[Mapping[str, Any]],
    iou_type: Literal["segm", "bbox"],
    image_hw: tuple[int, int],
) -> ImageOverlaps:
    """Compute the overlaps in an image from records in COCO's format."""
    crowd = np.array([bool(entry.get("iscrowd", 0)) for entry in objects], dtype=bool)
    predicted: list[Any]
    truth: list[Any]
    if iou_type == "segm":
        predicted, truth = (
            [from_coco(record["segmentation"], *image_hw) for record in records]
            for records in (results, objects)
        )
        predicted_areas = areas(predicted)
    else:
        predicted, truth = (
            [record["bbox"] for record in records] for records in (results, objects)
        )
        predicted_areas = np.array([box[2] * box[3] for box in predicted], dtype=np.float64)
    return overlaps_of(
        image_id,
        Detected(
            np.array([result["category_id"] for result in results], dtype=np.int64),
            np.array([result["score"] for result in results], dtype=np.float64),
            predicted_areas,
            np.zeros(len(results), dtype=bool),
        ),
        Objects(
            np.array([entry["category_id"] for entry in objects], dtype=np.int64),
            np.array([entry["area"] for entry in objects], dtype=np.float64),
            crowd,
        ),
        compare_shapes(predicted, truth, crowd),
        COCO_DETECTIONS,
    )


def _by_image(records: Sequence[Mapping[str, Any]]) -> dict[int, list[Any]]:
    images: dict[int, list[Any]] = defaultdict(list)
    for record in records:
        images[record["image_id"]].append(record)
    return images
