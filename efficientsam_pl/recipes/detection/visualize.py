"""Visualize the objects detected in a few images during training."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812
import numpy as np
import torch

from efficientsam_pl.inference.detections import detected_objects
from efficientsam_pl.models.detection.config import DetectorConfig
from efficientsam_pl.rle import encode_many
from efficientsam_pl.structures import DetectionBatch, Detections
from efficientsam_pl.training.callbacks.image_logger import ImageLogger
from efficientsam_pl.training.callbacks.periodic_drawing import PeriodicDrawing
from efficientsam_pl.training.parallelize import as_forward_of
from efficientsam_pl.visualization.detections import DetectedImage, DrawnObject, detection_sheet

_LEAST_SCORE = 0.5  # of an object that is drawn; detectron2's demo
_MOST_OBJECTS = 20  # drawn in an image


class DetectionVisualizer(PeriodicDrawing):
    """Write `pictures/step-N.png` every n steps and at the end, and to the run's logger.

    Every rank detects in the same images, since under FSDP2 the others would wait for a rank that
    does not.
    """

    def __init__(
        self,
        folder: Path,
        every_steps: int,
        images: Callable[[], DetectionBatch],
        shape: DetectorConfig,
        paused: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Configure the visualizations of one run.

        Args:
            folder: Folder of the run.
            every_steps: Optimizer steps between two visualizations.
            images: Reads the same few images on every rank; called once, at the first step drawn.
            shape: The model's config, with the names of its classes.
            paused: Context of the work, such as a paused clock.
        """
        super().__init__(every_steps, paused)
        self._image_logger = ImageLogger(folder / "pictures", "pictures/detections")
        self._read, self._shape = images, shape
        self._images: DetectionBatch | None = None

    @torch.no_grad()  # FSDP2 cannot use in training what was gathered in inference mode
    def _draw(self, trainer: L.Trainer, pl_module: Any, step: int) -> None:
        if self._images is None:
            self._images = self._read()
        batch = self._images.to(trainer.strategy.root_device)
        model = pl_module.eval_model()
        training = model.training
        model.eval()
        detect = as_forward_of(model, model.detect)
        with trainer.precision_plugin.forward_context():
            results = detect(batch.image, batch.content_hw)
        model.train(training)
        if trainer.is_global_zero and batch.valid.any():
            sheet = detection_sheet(drawn_images(batch, results, self._shape))
            self._image_logger.log(trainer, sheet, step)


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
