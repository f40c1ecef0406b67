"""Filters of the generated masks: crop edges, duplicates (NMS), small regions.

Axes: n masks.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torchvision.ops import batched_nms

from efficientsam_pl.inference.automask.crops import Xyxy
from efficientsam_pl.inference.automask.records import MaskSet
from efficientsam_pl.inference.automask.small_regions import remove_small_regions
from efficientsam_pl.rle import Rle, boxes_xyxy

_EDGE_PX = 20  # SAM's


def mask_boxes(rles: list[Rle], empty_at: tuple[int, int] = (0, 0)) -> Int64[np.ndarray, "n 4"]:
    """Compute tight boxes (x0, y0, x1, y1); an empty mask gets a single point, as in SAM."""
    boxes = boxes_xyxy(rles).astype(np.int64)
    boxes[boxes[:, 2] < boxes[:, 0]] = (*empty_at, *empty_at)
    return boxes


def is_box_near_crop_edge(
    boxes: Int64[np.ndarray, "n 4"], crop: Xyxy, image_hw: tuple[int, int]
) -> Bool[np.ndarray, "n"]:
    """Flag boxes within 20 pixels of an edge of the crop that is not an edge of the image."""
    image_box = np.array((0, 0, image_hw[1], image_hw[0]))
    near_crop = np.abs(boxes - np.array(crop)) <= _EDGE_PX
    near_image = np.abs(boxes - image_box) <= _EDGE_PX
    cut: Bool[np.ndarray, "n"] = (near_crop & ~near_image).any(axis=1)
    return cut


def suppress_duplicates(
    masks: MaskSet, scores: Float[np.ndarray, "n"], threshold: float
) -> MaskSet:
    """Apply box NMS and sort by falling score.

    Args:
        masks: The masks.
        scores: One score per mask.
        threshold: IoU of boxes above which the lower score is dropped; from 1 on all are kept.
    """
    return masks.filter(_box_nms(masks.boxes_xyxy, scores, threshold))


def postprocess_small_regions(masks: MaskSet, min_area: int, threshold: float) -> MaskSet:
    """Fill holes, drop islands, and apply NMS again, which prefers masks that did not change."""
    cleaned = [remove_small_regions(rle, min_area) for rle in masks.rles]
    boxes = mask_boxes([mask.rle for mask in cleaned])
    changed = np.array([mask.changed for mask in cleaned], dtype=bool)
    keep = _box_nms(boxes, (~changed).astype(np.float32), threshold)
    boxes = np.where(changed[:, None], boxes, masks.boxes_xyxy)
    return masks.with_masks([mask.rle for mask in cleaned], boxes).filter(keep)


def _box_nms(
    boxes: Int64[np.ndarray, "n 4"], scores: Float[np.ndarray, "n"], threshold: float
) -> Int64[np.ndarray, "m"]:
    numbers: Int64[np.ndarray, "m"] = batched_nms(
        torch.from_numpy(boxes).float(),
        torch.from_numpy(scores),
        torch.zeros(len(boxes), dtype=torch.int64),
        iou_threshold=threshold,
    ).numpy()
    return numbers
