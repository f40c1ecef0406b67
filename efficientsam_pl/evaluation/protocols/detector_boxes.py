"""`detector_boxes`: a detector's boxes become masks, which keep their boxes' scores.

Axes: q boxes of one image, k masks a box.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from efficientsam_pl.errors import UserError
from efficientsam_pl.evaluation.interfaces import MaskCandidates, PromptableModel
from efficientsam_pl.evaluation.protocols.base import (
    EvalContext,
    GroundTruthModel,
    best_candidate,
    ious_of,
)
from efficientsam_pl.evaluation.protocols.box_pixels import covered_pixels, filled
from efficientsam_pl.evaluation.protocols.tight_box import box_prompts
from efficientsam_pl.records import Instance
from efficientsam_pl.rle import Rle, boxes_xyxy, from_runs

MaskRule = Literal["box_iou", "predicted_iou", "token_0"]


@runtime_checkable
class BoxDetection(Protocol):
    """A detector's box (x0, y0, x1, y1) in image pixels, x1 = x + width, with its score."""

    @property
    def category_id(self) -> int:
        """Category in the data set."""
        ...

    @property
    def box_xyxy(self) -> tuple[float, float, float, float]:
        """Edges as COCO counts them."""
        ...

    @property
    def score(self) -> float:
        """Confidence of the detector."""
        ...


@dataclass(frozen=True)
class MaskDetection:
    """A detection with its mask; category and score are the detector's."""

    category_id: int
    mask: Rle
    score: float


@runtime_checkable
class FitsBoxes(Protocol):
    """Candidates that fit boxes without bringing every mask to the image's size."""

    def fitting(self, pixels: Int64[np.ndarray, "q 4"]) -> Int64[Tensor, "q"]:
        """Choose exactly as the function `fitting`."""
        ...


@dataclass(frozen=True, kw_only=True)
class DetectorBoxes:
    """Masks for a detector's boxes, chosen by a rule.

    `box_iou`: the candidate with the highest IoU with the box, both at the image's size
    (EfficientSAM, 4.3). `predicted_iou`: the candidate with the highest predicted IoU
    (EfficientViT-SAM, TinySAM). `token_0`: mask 0, which for SAM is meant for unambiguous prompts.
    With two `passes` the chosen mask is fed back with the box, and the rule chooses again: SAM's
    46.5 AP on COCO is measured so.
    """

    rule: MaskRule = "box_iou"
    passes: Literal[1, 2] = 1

    def __post_init__(self) -> None:
        if self.rule not in get_args(MaskRule):
            known = ", ".join(get_args(MaskRule))
            raise UserError(f"rule={self.rule} must be one of {known}")
        if self.passes not in (1, 2):
            raise UserError(f"passes={self.passes} must be 1 or 2")

    @property
    def name(self) -> str:
        """Name in configs and results, where rule and passes are listed with it."""
        return "detector_boxes"

    def check(self, model: PromptableModel) -> None:
        """Reject a second pass for a model that takes no mask prompts.

        Raises:
            UserError: The protocol has two passes and the model takes no mask prompts.
        """
        if self.passes == 2 and not model.mask_prompts:
            raise UserError("passes=2 needs a model that takes mask prompts, which this one lacks")

    def predict(
        self,
        context: EvalContext,
        detections: Sequence[BoxDetection],
        image_hw: tuple[int, int],
        instances: Sequence[Instance] = (),
    ) -> list[MaskDetection]:
        """Predict a mask for each detection of one image, in order.

        A box that several detections share, as those of a detector with one box for all categories
        do, is predicted once.

        Args:
            context: The model and the image.
            detections: Boxes in the image.
            image_hw: Height and width of the image.
            instances: The truth, which only the ground-truth baseline sees.

        Raises:
            UserError: As `check`.
        """
        self.check(context.model)
        if not detections:
            return []
        truth = None
        if isinstance(context.image, GroundTruthModel):
            truth = matched_truth(detections, instances, image_hw)
            boxes = np.array([detection.box_xyxy for detection in detections], dtype=np.float64)
            places = np.arange(len(detections))
        else:
            boxes, places = np.unique(
                np.array([detection.box_xyxy for detection in detections], dtype=np.float64),
                axis=0,
                return_inverse=True,
            )
        masks: list[Rle] = []
        for chunk in context.chunks(range(len(boxes))):
            span = slice(chunk[0], chunk[-1] + 1)
            masks += self._chunk(context, boxes[span], image_hw, truth[span] if truth else ())
        return [
            MaskDetection(detection.category_id, masks[place], detection.score)
            for detection, place in zip(detections, places.reshape(-1).tolist(), strict=True)
        ]

    def _chunk(
        self,
        context: EvalContext,
        boxes: Float[np.ndarray, "q 4"],
        image_hw: tuple[int, int],
        truth: Sequence[Rle],
    ) -> list[Rle]:
        image, pixels = context.image_for(truth), covered_pixels(boxes, image_hw)
        candidates = image.predict(box_prompts(boxes))
        chosen = self._chosen(candidates, pixels, image_hw)
        if self.passes == 2:
            candidates = image.predict(box_prompts(boxes, candidates.logits(chosen)))
            chosen = self._chosen(candidates, pixels, image_hw)
        return candidates.masks(chosen)

    def _chosen(
        self,
        candidates: MaskCandidates,
        pixels: Int64[np.ndarray, "q 4"],
        image_hw: tuple[int, int],
    ) -> Int64[Tensor, "q"]:
        if self.rule == "token_0":
            return torch.zeros(len(pixels), dtype=torch.long)
        if self.rule == "predicted_iou":
            return best_candidate(candidates)
        if isinstance(candidates, FitsBoxes):
            return candidates.fitting(pixels)
        return fitting(candidates, pixels, image_hw)


def fitting(
    candidates: MaskCandidates, pixels: Int64[np.ndarray, "q 4"], image_hw: tuple[int, int]
) -> Int64[Tensor, "q"]:
    """Choose the candidate with the highest IoU with the box's pixels; ties take the first.

    Args:
        candidates: Masks of each box.
        pixels: Columns and rows of each box, see `covered_pixels`.
        image_hw: Height and width of the image.
    """
    boxes = filled(pixels, image_hw)
    first = candidates.first_candidate
    every = torch.full((len(boxes),), 1)
    ious = [
        ious_of(candidates.masks(every * k), boxes) for k in range(first, candidates.iou.shape[1])
    ]
    return first + torch.from_numpy(np.stack(ious)).argmax(dim=0)


def matched_truth(
    detections: Sequence[BoxDetection],
    instances: Sequence[Instance],
    image_hw: tuple[int, int],
) -> list[Rle]:
    """Match each detection to the instance of its category whose box it overlaps most.

    Each instance is matched once, by the first detection that overlaps it; a detection without a
    match gets an empty mask.
    """
    height, width = image_hw
    nothing = from_runs(np.array([height * width]), height, width)
    tight = boxes_xyxy([instance.mask for instance in instances])
    left = set(range(len(instances)))
    masks: list[Rle] = []
    for detection in detections:
        same = [i for i in sorted(left) if instances[i].category_id == detection.category_id]
        box = np.array(detection.box_xyxy)
        overlap = {i: _box_iou(box, tight[i] + (0, 0, 1, 1)) for i in same}
        best = max(overlap, key=overlap.__getitem__, default=-1)
        if best < 0 or overlap[best] <= 0:
            masks.append(nothing)
            continue
        left.remove(best)
        masks.append(instances[best].mask)
    return masks


def _box_iou(first: Float[np.ndarray, "4"], second: Float[np.ndarray, "4"]) -> float:
    sides = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
    shared = float(np.prod(np.clip(sides, 0, None)))
    either = sum(float(np.prod(box[2:] - box[:2])) for box in (first, second)) - shared
    return shared / either if either > 0 else 0.0
