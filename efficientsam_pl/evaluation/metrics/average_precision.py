"""COCO's average precision: of result records as they are, and as a metric over run-lengths."""

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

_ANY = 1  # the one category of masks that have none
_ID = json.JSONDecoder()  # of the first entry of a line


def coco_average_precision(
    ground_truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    iou_type: Literal["segm", "bbox"],
) -> AveragePrecision:
    """Average precision over every image and category of a COCO ground truth.

    Args:
        ground_truth: Content of a COCO annotation file; it is not changed.
        results: COCO result records (image_id, category_id, score, and segmentation or bbox).
            None at all scores 0.
        iou_type: Whether masks or boxes are compared.

    Raises:
        ValueError: A result for an image that the ground truth does not have.
    """
    sizes = {i["id"]: (i.get("height", 0), i.get("width", 0)) for i in ground_truth["images"]}
    unknown = {r["image_id"] for r in results} - sizes.keys()
    if unknown:
        raise ValueError(f"results for images without ground truth: {sorted(unknown)[:5]}")
    objects, found = _by_image(ground_truth["annotations"]), _by_image(results)
    return averages(
        (
            _overlaps(image_id, objects[image_id], found[image_id], iou_type, image_hw)
            for image_id, image_hw in sizes.items()
        ),
        sorted({one["id"] for one in ground_truth["categories"]}),
    )


class MaskAp(Metric):
    """Class-agnostic mask AP over all ranks, each image scored once however often it was seen.

    The state is one line of JSON an image, as bytes: run-lengths take a thousandth of the masks,
    and bytes of any length, even none on some rank, are gathered at once.

    Source:
        Lin et al. 2014 (Microsoft COCO) by pycocotools, with every object of one category, none
        a crowd, and areas counted in pixels of the run-lengths' own size.
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
        """Count one image in.

        Raises:
            ValueError: Not one score a detection, or run-lengths of several sizes.
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
        """The twelve numbers so far, the same on every rank."""
        parts = self.lines if isinstance(self.lines, list) else [self.lines]
        text = b"".join(part.cpu().numpy().tobytes() for part in parts).decode()
        # parsed one by one: collecting garbage among all masks' records would take the most time
        once = {_ID.raw_decode(line, 1)[0]: line for line in text.splitlines()}
        # Sorted, since COCO breaks ties between scores by the order of images
        return averages((_of_line(n, once[key]) for n, key in enumerate(sorted(once))), [_ANY])


def _of_line(number: int, line: str) -> ImageOverlaps:
    """The overlaps in an image, from its line of the state."""
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
    """The overlaps in an image, from records as COCO's files have them."""
    crowd = np.array([bool(one.get("iscrowd", 0)) for one in objects], dtype=bool)
    found: list[Any]
    truth: list[Any]
    if iou_type == "segm":
        found, truth = (
            [from_coco(one["segmentation"], *image_hw) for one in some]
            for some in (results, objects)
        )
        found_areas = areas(found)
    else:
        found, truth = ([one["bbox"] for one in some] for some in (results, objects))
        found_areas = np.array([box[2] * box[3] for box in found], dtype=np.float64)
    return overlaps_of(
        image_id,
        Detected(
            np.array([one["category_id"] for one in results], dtype=np.int64),
            np.array([one["score"] for one in results], dtype=np.float64),
            found_areas,
            np.zeros(len(results), dtype=bool),
        ),
        Objects(
            np.array([one["category_id"] for one in objects], dtype=np.int64),
            np.array([one["area"] for one in objects], dtype=np.float64),
            crowd,
        ),
        compare_shapes(found, truth, crowd),
        COCO_DETECTIONS,
    )


def _by_image(records: Sequence[Mapping[str, Any]]) -> dict[int, list[Any]]:
    images: dict[int, list[Any]] = defaultdict(list)
    for one in records:
        images[one["image_id"]].append(one)
    return images


def _gather_bytes(data: Tensor, group: Any = None) -> list[Tensor]:
    # For a rank without images torchmetrics makes up an empty float tensor
    gathered: list[Tensor] = gather_all_tensors(data.to(torch.uint8), group)
    return gathered
