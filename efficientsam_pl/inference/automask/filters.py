"""Which of the masks found are kept: apart from a crop's edge, no duplicates, no small regions.

Axes: n masks.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torchvision.ops import batched_nms

from efficientsam_pl.inference.automask.crops import Xyxy
from efficientsam_pl.inference.automask.records import MaskSet
from efficientsam_pl.inference.automask.small_regions import cleaned
from efficientsam_pl.rle import Rle, boxes_xyxy

_EDGE_PX = 20  # SAM's


def mask_boxes(rles: list[Rle], empty_at: tuple[int, int] = (0, 0)) -> Int64[np.ndarray, "n 4"]:
    """Corners (x0, y0, x1, y1) of tight boxes; an empty mask has a point, as in SAM."""
    boxes = boxes_xyxy(rles).astype(np.int64)
    boxes[boxes[:, 2] < boxes[:, 0]] = (*empty_at, *empty_at)
    return boxes


def is_box_near_crop_edge(
    boxes: Int64[np.ndarray, "n 4"], crop: Xyxy, image_hw: tuple[int, int]
) -> Bool[np.ndarray, "n"]:
    """Boxes with a side within 20 pixels of the crop's, unless the photo ends there too."""
    photo = np.array((0, 0, image_hw[1], image_hw[0]))
    near_crop = np.abs(boxes - np.array(crop)) <= _EDGE_PX
    near_image = np.abs(boxes - photo) <= _EDGE_PX
    cut: Bool[np.ndarray, "n"] = (near_crop & ~near_image).any(axis=1)
    return cut


def without_duplicates(found: MaskSet, scores: Float[np.ndarray, "n"], threshold: float) -> MaskSet:
    """Of masks whose boxes overlap more than the threshold that with the highest score, in order.

    Args:
        found: Masks.
        scores: Of each.
        threshold: IoU of boxes; above 1 all are kept, but put in order.
    """
    return found.take(_kept(found.boxes_xyxy, scores, threshold))


def without_small_regions(found: MaskSet, min_area: int, threshold: float) -> MaskSet:
    """Holes filled, islands dropped, and of duplicates that is kept which was not changed."""
    every = [cleaned(rle, min_area) for rle in found.rles]
    boxes = mask_boxes([one.rle for one in every])
    changed = np.array([one.changed for one in every], dtype=bool)
    kept = _kept(boxes, (~changed).astype(np.float32), threshold)
    boxes = np.where(changed[:, None], boxes, found.boxes_xyxy)
    return found.with_masks([one.rle for one in every], boxes).take(kept)


def _kept(
    boxes: Int64[np.ndarray, "n 4"], scores: Float[np.ndarray, "n"], threshold: float
) -> Int64[np.ndarray, "m"]:
    numbers: Int64[np.ndarray, "m"] = batched_nms(
        torch.from_numpy(boxes).float(),
        torch.from_numpy(scores),
        torch.zeros(len(boxes), dtype=torch.int64),
        iou_threshold=threshold,
    ).numpy()
    return numbers
