"""COCO's average precision: of result records as they are, and as a metric over run-lengths."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from pycocotools import mask as coco_mask
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from efficientsam_pl.evaluation.matching import (
    AveragePrecision,
    Matches,
    averages,
    match,
    ranked,
)
from efficientsam_pl.rle import Rle, areas, from_coco

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
    objects, found = _by_place(ground_truth["annotations"]), _by_place(results)
    categories = []
    for category in sorted({one["id"] for one in ground_truth["categories"]}):
        places = [(category, image) for image in sorted(sizes)]
        categories.append(
            [
                _matched(objects[place], found[place], iou_type, sizes[place[1]])
                for place in places
                if place in objects or place in found
            ]
        )
    return averages(categories)


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
        return averages([[_mask_matches(once[image_id]) for image_id in sorted(once)]])


def _mask_matches(line: str) -> Matches:
    """The matches of an image, from its line of the state."""
    _, truth, detections, scores = json.loads(line)
    known = np.array(scores, dtype=np.float64)
    order = ranked(known)
    best = [detections[place] for place in order]
    crowd = np.zeros(len(truth), dtype=bool)
    return match(_iou(best, truth, crowd), known[order], areas(best), areas(truth), crowd)


def _matched(
    objects: Sequence[Mapping[str, Any]],
    results: Sequence[Mapping[str, Any]],
    iou_type: Literal["segm", "bbox"],
    image_hw: tuple[int, int],
) -> Matches:
    """The matches in one image and one category."""
    scores = np.array([one["score"] for one in results], dtype=np.float64)
    order = ranked(scores)
    best = [results[place] for place in order]
    crowd = np.array([bool(one.get("iscrowd", 0)) for one in objects], dtype=bool)
    stated = np.array([one["area"] for one in objects], dtype=np.float64)
    if iou_type == "segm":
        truth = [from_coco(one["segmentation"], *image_hw) for one in objects]
        masks = [from_coco(one["segmentation"], *image_hw) for one in best]
        return match(_iou(masks, truth, crowd), scores[order], areas(masks), stated, crowd)
    boxes, real = (
        np.array([one["bbox"] for one in some], dtype=np.float64).reshape(-1, 4)
        for some in (best, objects)
    )
    return match(_iou(boxes, real, crowd), scores[order], boxes[:, 2] * boxes[:, 3], stated, crowd)


def _by_place(records: Sequence[Mapping[str, Any]]) -> dict[tuple[int, int], list[Any]]:
    """Records by category and image."""
    places: dict[tuple[int, int], list[Any]] = defaultdict(list)
    for one in records:
        places[one["category_id"], one["image_id"]].append(one)
    return places


def _iou(detections: Any, objects: Any, crowd: Any) -> Float[np.ndarray, "d g"]:
    """Of boxes [n, 4] (x, y, width, height), or of lists of run-lengths."""
    if len(detections) == 0 or len(objects) == 0:
        return np.zeros((len(detections), len(objects)))
    iou: Float[np.ndarray, "d g"] = coco_mask.iou(detections, objects, crowd.astype(np.uint8))
    return iou


def _gather_bytes(data: Tensor, group: Any = None) -> list[Tensor]:
    # For a rank without images torchmetrics makes up an empty float tensor
    gathered: list[Tensor] = gather_all_tensors(data.to(torch.uint8), group)
    return gathered
