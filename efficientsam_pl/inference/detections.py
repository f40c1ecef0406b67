"""Bring a detector's output into the pixels of the image: boxes, and masks as run-lengths.

Coordinates are edges of pixels, as in `structures.DetectionBatch`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from efficientsam_pl.evaluation.metrics.detection_ap import DetectedObjects
from efficientsam_pl.models.detection.pasting import paste_run_lengths
from efficientsam_pl.structures import Detections


def to_image(
    found: Detections, content_hw: tuple[int, int], image_hw: tuple[int, int]
) -> Detections:
    """Scale boxes from the frame to the image, and clip them to it.

    Args:
        found: Detections in the frame.
        content_hw: Part of the frame that is image.
        image_hw: Size of the image, in pixels.
    """
    down, across = (image / content for image, content in zip(image_hw, content_hw, strict=True))
    boxes = found.boxes_xyxy_px.float()
    boxes = boxes * boxes.new_tensor([across, down, across, down])
    limit = boxes.new_tensor([image_hw[1], image_hw[0]] * 2)
    return replace(found, boxes_xyxy_px=boxes.clamp(min=0).minimum(limit))


def detected_objects(found: Detections, image_hw: tuple[int, int]) -> DetectedObjects:
    """Paste the masks of detections in an image's pixels, as run-lengths."""
    boxes: Tensor = found.boxes_xyxy_px.cpu().double()
    corners, sizes = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    return DetectedObjects(
        classes=found.classes.tolist(),
        scores=found.scores.double().tolist(),
        boxes_xywh=torch.cat([corners, sizes], dim=1).numpy(),
        masks=paste_run_lengths(found.mask_probs, found.boxes_xyxy_px, image_hw),
    )
