"""COCO's average precision: of result records as they are, and as a metric over run-lengths."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, UInt8
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from efficientsam_pl.rle import Rle, area


class AveragePrecision(NamedTuple):
    """COCO's twelve numbers in COCO's order; -1 where there is no ground truth to find.

    `ap` is the mean over the IoU thresholds 0.50:0.05:0.95; `ar10` allows ten detections an
    image; small, medium and large part at areas of 32^2 and 96^2 pixels.

    A named tuple, because torchmetrics refuses to return frozen dataclasses.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar1: float
    ar10: float
    ar100: float
    ar_small: float
    ar_medium: float
    ar_large: float

    @staticmethod
    def from_stats(stats: Iterable[float]) -> AveragePrecision:
        """The record of `COCOeval.stats`."""
        return AveragePrecision(*map(float, stats))


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

    Source:
        pycocotools' COCOeval, which is run as it is.
    """
    unknown = {r["image_id"] for r in results} - {i["id"] for i in ground_truth["images"]}
    if unknown:
        raise ValueError(f"results for images without ground truth: {sorted(unknown)[:5]}")
    # Beside a mask, COCO would take the box's area for the mask's
    surplus = {"bbox"} if iou_type == "segm" else set()
    kept = [{k: v for k, v in result.items() if k not in surplus} for result in results]
    with redirect_stdout(io.StringIO()):
        truth = _indexed(ground_truth, ground_truth["annotations"])
        found = truth.loadRes(kept) if kept else _indexed(ground_truth, [])
        evaluation = COCOeval(truth, found, iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return AveragePrecision.from_stats(evaluation.stats)


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
        records = (json.loads(line) for line in text.splitlines())
        once = {image_id: record for image_id, *record in records}
        images, annotations, results = [], [], []
        # Sorted, since COCO breaks ties between scores by the order of images
        for number, (_, (truth, detections, scores)) in enumerate(sorted(once.items())):
            images.append({"id": number, "height": 0, "width": 0})  # asked for, never used
            annotations += [_object(number, rle) for rle in truth]
            results += [
                _object(number, r) | {"score": s} for r, s in zip(detections, scores, strict=True)
            ]
        for number, annotation in enumerate(annotations, start=1):  # id 0 would mean no match
            annotation |= {"id": number, "area": area(annotation["segmentation"]), "iscrowd": 0}
        ground_truth = {"images": images, "annotations": annotations, "categories": [{"id": 1}]}
        return coco_average_precision(ground_truth, results, "segm")


def _object(image: int, rle: Rle) -> dict[str, Any]:
    return {"image_id": image, "category_id": 1, "segmentation": rle}


def _indexed(dataset: Mapping[str, Any], annotations: Iterable[Mapping[str, Any]]) -> COCO:
    coco = COCO()
    # Copies: COCOeval writes into the annotations
    coco.dataset = {**dataset, "annotations": [dict(a) for a in annotations]}
    coco.createIndex()
    return coco


def _gather_bytes(data: Tensor, group: Any = None) -> list[Tensor]:
    # For a rank without images torchmetrics makes up an empty float tensor
    gathered: list[Tensor] = gather_all_tensors(data.to(torch.uint8), group)
    return gathered
