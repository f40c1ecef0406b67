"""Visualize the classes of a few images during training."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812
import torch

from efficientsam_pl.models.classifier_config import ClassifierConfig
from efficientsam_pl.structures import ClassBatch
from efficientsam_pl.training.callbacks.image_logger import ImageLogger
from efficientsam_pl.training.callbacks.periodic_drawing import PeriodicDrawing
from efficientsam_pl.visualization.classes import ClassifiedImage, ClassShare, class_sheet

_CLASSES = 3  # an image's most probable ones


class ClassVisualizer(PeriodicDrawing):
    """Write `pictures/step-N.png` every n steps and at the end, and to the run's logger.

    Every rank classifies the same images, since under FSDP2 the others would wait for a rank that
    does not.
    """

    def __init__(
        self,
        folder: Path,
        every_steps: int,
        images: Callable[[], ClassBatch],
        shape: ClassifierConfig,
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
        self._image_logger = ImageLogger(folder / "pictures", "pictures/classes")
        self._read, self._shape = images, shape
        self._images: ClassBatch | None = None

    @torch.no_grad()  # FSDP2 cannot use in training what was gathered in inference mode
    def _draw(self, trainer: L.Trainer, pl_module: Any, step: int) -> None:
        if self._images is None:
            self._images = self._read()
        batch = self._images.to(trainer.strategy.root_device)
        model = pl_module.eval_model()
        training = model.training
        model.eval()
        with trainer.precision_plugin.forward_context():
            probabilities = model(batch.image).float().softmax(-1)
        model.train(training)
        if trainer.is_global_zero and batch.valid.any():
            top = probabilities.topk(min(_CLASSES, probabilities.shape[-1]))
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
            self._image_logger.log(trainer, class_sheet(images), step)
