"""Visualize what the model makes of the same few images, during training."""

from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812
import torch
from PIL import Image

from efficientsam_pl.training.callbacks.image_logger import ImageLogger
from efficientsam_pl.training.callbacks.periodic_drawing import PeriodicDrawing


class BatchVisualizer(PeriodicDrawing):
    """Write `pictures/step-N.png` every n steps and at the end, and to the run's logger.

    Every rank predicts for the same images, since under FSDP2 the others would wait for a rank that
    does not.
    """

    def __init__(
        self,
        folder: Path,
        tag: str,
        every_steps: int,
        images: Callable[[], Any],
        paused: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Configure the visualizations of one run.

        Args:
            folder: Folder of the run.
            tag: Name of the pictures in the run's logger.
            every_steps: Optimizer steps between two visualizations.
            images: Reads the same few images on every rank; called once, at the first step drawn.
            paused: Context of the work, such as a paused clock.
        """
        super().__init__(every_steps, paused)
        self._image_logger = ImageLogger(folder / "pictures", tag)
        self._read = images
        self._images: Any = None

    @torch.no_grad()  # FSDP2 cannot use in training what was gathered in inference mode
    def _draw(self, trainer: L.Trainer, pl_module: Any, step: int) -> None:
        if self._images is None:
            self._images = self._read()
        batch = self._images.to(trainer.strategy.root_device)
        model = pl_module.eval_model()
        training = model.training
        model.eval()
        with trainer.precision_plugin.forward_context():
            predicted = self.predict(model, batch)
        model.train(training)
        if trainer.is_global_zero and batch.valid.any():
            self._image_logger.log(trainer, self.sheet(batch, predicted), step)

    @abstractmethod
    def predict(self, model: Any, batch: Any) -> Any:
        """Predict for the batch, on every rank."""

    @abstractmethod
    def sheet(self, batch: Any, predicted: Any) -> Image.Image:
        """Draw the valid images of the batch, on the first rank."""
