"""Visualize the label maps of a few images during training."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from efficientsam_pl.models.semantic.config import SemanticConfig
from efficientsam_pl.models.semantic.mask2former import class_scores
from efficientsam_pl.structures import SemanticBatch
from efficientsam_pl.training.callbacks.batch_visualizer import BatchVisualizer
from efficientsam_pl.visualization.label_map import SegmentedPicture, label_map_sheet


class LabelMapVisualizer(BatchVisualizer):
    """Draw label maps beside the true ones."""

    def __init__(
        self,
        folder: Path,
        every_steps: int,
        images: Callable[[], SemanticBatch],
        shape: SemanticConfig,
        paused: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Configure as `BatchVisualizer`; `shape` has the names of the classes."""
        super().__init__(folder, "pictures/label_maps", every_steps, images, paused)
        self._shape = shape

    def predict(self, model: Any, batch: SemanticBatch) -> Tensor:
        """Score the classes of every pixel."""
        return class_scores(model(batch.image)[-1], batch.image.shape[-2:])

    def sheet(self, batch: SemanticBatch, predicted: Tensor) -> Image.Image:
        """Draw the map of the highest scores."""
        names = tuple(self._shape.label(number) for number in range(self._shape.classes))
        pictures = [
            SegmentedPicture(
                image=image.permute(1, 2, 0).cpu().numpy(),
                labels=labels.to(torch.uint8).cpu().numpy(),
                truth=truth.cpu().numpy(),
                names=names,
            )
            for image, labels, truth, valid in zip(
                batch.image, predicted.argmax(1), batch.labels, batch.valid, strict=True
            )
            if valid
        ]
        return label_map_sheet(pictures)
