"""Visualize the label maps of a few images during training."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812
import torch

from efficientsam_pl.models.semantic.config import SemanticConfig
from efficientsam_pl.models.semantic.mask2former import class_scores
from efficientsam_pl.structures import SemanticBatch
from efficientsam_pl.training.callbacks.image_logger import ImageLogger
from efficientsam_pl.training.callbacks.periodic_drawing import PeriodicDrawing
from efficientsam_pl.visualization.label_map import SegmentedPicture, label_map_sheet


class LabelMapVisualizer(PeriodicDrawing):
    """Write `pictures/step-N.png` every n steps and at the end, and to the run's logger.

    Every rank segments the same images, since under FSDP2 the others would wait for a rank that
    does not.
    """

    def __init__(
        self,
        folder: Path,
        every_steps: int,
        images: Callable[[], SemanticBatch],
        shape: SemanticConfig,
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
        self._image_logger = ImageLogger(folder / "pictures", "pictures/label_maps")
        self._read, self._shape = images, shape
        self._images: SemanticBatch | None = None

    @torch.no_grad()  # FSDP2 cannot use in training what was gathered in inference mode
    def _draw(self, trainer: L.Trainer, pl_module: Any, step: int) -> None:
        if self._images is None:
            self._images = self._read()
        batch = self._images.to(trainer.strategy.root_device)
        model = pl_module.eval_model()
        training = model.training
        model.eval()
        with trainer.precision_plugin.forward_context():
            scores = class_scores(model(batch.image)[-1], batch.image.shape[-2:])
        model.train(training)
        if trainer.is_global_zero and batch.valid.any():
            names = tuple(self._shape.label(number) for number in range(self._shape.classes))
            pictures = [
                SegmentedPicture(
                    image=image.permute(1, 2, 0).cpu().numpy(),
                    labels=labels.to(torch.uint8).cpu().numpy(),
                    truth=truth.cpu().numpy(),
                    names=names,
                )
                for image, labels, truth, valid in zip(
                    batch.image, scores.argmax(1), batch.labels, batch.valid, strict=True
                )
                if valid
            ]
            self._image_logger.log(trainer, label_map_sheet(pictures), step)
