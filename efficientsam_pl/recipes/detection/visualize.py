"""Visualize the objects detected in a few images during training."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from efficientsam_pl.inference.detections import detected_objects
from efficientsam_pl.models.detection.config import DetectorConfig
from efficientsam_pl.rle import encode_many
from efficientsam_pl.structures import DetectionBatch, Detections
from efficientsam_pl.training.callbacks.batch_visualizer import BatchVisualizer
from efficientsam_pl.training.parallelize import as_forward_of
from efficientsam_pl.visualization.detections import DetectedImage, DrawnObject, detection_sheet

_LEAST_SCORE = 0.5  # of an object that is drawn; detectron2's demo
_MOST_OBJECTS = 20  # drawn in an image


class DetectionVisualizer(BatchVisualizer):
    """Draw detected objects beside the annotated ones."""

    def __init__(
        self,
        folder: Path,
        every_steps: int,
        images: Callable[[], DetectionBatch],
        shape: DetectorConfig,
        paused: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Configure as `BatchVisualizer`; `shape` has the names of the classes."""
        super().__init__(folder, "pictures/detections", every_steps, images, paused)
        self._shape = shape

    def predict(self, model: Any, batch: DetectionBatch) -> list[Detections]:
        """Detect the objects of every image."""
        results: list[Detections] = as_forward_of(model, model.detect)(
            batch.image, batch.content_hw
        )
        return results

    def sheet(self, batch: DetectionBatch, predicted: list[Detections]) -> Image.Image:
        """Draw the objects of the valid images."""
        return detection_sheet(drawn_images(batch, predicted, self._shape))


def drawn_images(
    batch: DetectionBatch, results: list[Detections], shape: DetectorConfig
) -> list[DetectedImage]:
    """Pair each valid image's objects with those detected; without the frame's padding."""
    first, images = 0, []
    for number, detections in enumerate(results):
        count = batch.objects_per_image[number]
        objects = slice(first, first + count)
        first += count
        if not batch.valid[number]:
            continue
        height, width = (int(side) for side in batch.content_hw[number])
        pixels = batch.image[number, :, :height, :width].permute(1, 2, 0).cpu().numpy()
        masks = batch.masks[objects, :height, :width].cpu().numpy()
        truth = tuple(
            DrawnObject(shape.label(label), label, (x0, y0, x1, y1), mask)
            for label, (x0, y0, x1, y1), mask in zip(
                batch.classes[objects].tolist(),
                batch.boxes_xyxy_px[objects].tolist(),
                encode_many(masks),
                strict=True,
            )
        )
        likely = _drawn(detections, (height, width), shape)
        images.append(DetectedImage(np.ascontiguousarray(pixels), likely, truth))
    return images


def _drawn(
    detections: Detections, image_hw: tuple[int, int], shape: DetectorConfig
) -> tuple[DrawnObject, ...]:
    kept = int((detections.scores >= _LEAST_SCORE).sum().clamp(max=_MOST_OBJECTS))
    best = Detections(
        detections.boxes_xyxy_px[:kept],
        detections.scores[:kept],
        detections.classes[:kept],
        detections.mask_probs[:kept],
    )
    boxes = best.boxes_xyxy_px.tolist()
    objects = detected_objects(best, image_hw)
    return tuple(
        DrawnObject(shape.label(label), label, (x0, y0, x1, y1), mask, score)
        for label, (x0, y0, x1, y1), mask, score in zip(
            objects.classes, boxes, objects.masks, objects.scores, strict=True
        )
    )
