"""Visualize the classes of a few images during training."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from efficientsam_pl.models.classifier_config import ClassifierConfig
from efficientsam_pl.structures import ClassBatch
from efficientsam_pl.training.callbacks.batch_visualizer import BatchVisualizer
from efficientsam_pl.visualization.classes import ClassifiedImage, ClassShare, class_sheet

_CLASSES = 3  # an image's most probable ones


class ClassVisualizer(BatchVisualizer):
    """Draw images with their most probable classes."""

    def __init__(
        self,
        folder: Path,
        every_steps: int,
        images: Callable[[], ClassBatch],
        shape: ClassifierConfig,
        paused: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Configure as `BatchVisualizer`; `shape` has the names of the classes."""
        super().__init__(folder, "pictures/classes", every_steps, images, paused)
        self._shape = shape

    def predict(self, model: Any, batch: ClassBatch) -> Tensor:
        """Compute the classes' probabilities."""
        probabilities: Tensor = model(batch.image).float().softmax(-1)
        return probabilities

    def sheet(self, batch: ClassBatch, predicted: Tensor) -> Image.Image:
        """Draw the most probable classes of the valid images."""
        top = predicted.topk(min(_CLASSES, predicted.shape[-1]))
        images = [
            ClassifiedImage(
                image.permute(1, 2, 0).cpu().numpy(),
                tuple(
                    ClassShare(self._shape.label(int(number)), float(share))
                    for share, number in zip(shares, numbers, strict=True)
                ),
                truth=self._shape.label(int(label)),
            )
            for image, label, valid, shares, numbers in zip(
                batch.image, batch.label, batch.valid, top.values, top.indices, strict=True
            )
            if valid
        ]
        return class_sheet(images)
