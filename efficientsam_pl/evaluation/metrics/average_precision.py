"""COCO's average precision: from result records, and as a metric over run-lengths."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

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
_ID = json.JSONDecoder()  # for the image id, the first entry of a line


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


class MaskAp(Metric):
    """Class-agnostic mask AP over all ranks, each image scored once even if several ranks saw it.

    The state is one line of JSON an image, as bytes: run-lengths take a thousandth of the masks,
    and ranks gather bytes of different lengths, even zero, in a single call.

    Source:
        Lin et al. 2014 (Microsoft COCO) by pycocotools, with a single category, no
        crowds, and areas counted in pixels at the size of the run-lengths.
    """

    full_state_update = False
    higher_is_better = True
    lines: list[UInt8[Tensor, "bytes"]] | UInt8[Tensor, "bytes"]

    def __init__(self) -> None:
        super().__init__(dist_sync_fn=_gather_bytes)
        self.add_state("lines", [], dist_reduce_fx="cat")

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
        line = json.dumps([image_id, truth, detections, scores.tolist()]) + "\n"
        data = torch.frombuffer(bytearray(line.encode()), dtype=torch.uint8)
        assert isinstance(self.lines, list)
        self.lines.append(data.to(self.device))

    def compute(self) -> AveragePrecision:
        """Compute the twelve numbers so far, the same on every rank."""
        parts = self.lines if isinstance(self.lines, list) else [self.lines]
        text = b"".join(part.cpu().numpy().tobytes() for part in parts).decode()
        # parsed line by line: garbage collection over all records at once would dominate
        once = {_ID.raw_decode(line, 1)[0]: line for line in text.splitlines()}
        # Sorted, since COCO breaks ties between scores by the order of images
        return averages((_of_line(n, once[key]) for n, key in enumerate(sorted(once))), [_ANY])


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


def _gather_bytes(data: Tensor, group: Any = None) -> list[Tensor]:
    # For a rank without images torchmetrics makes up an empty float tensor
    gathered: list[Tensor] = gather_all_tensors(data.to(torch.uint8), group)
    return gathered
