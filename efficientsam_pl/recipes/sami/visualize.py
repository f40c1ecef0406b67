"""Visualize a student's predicted features of a few images during training."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor

from efficientsam_pl.structures import ImageBatch
from efficientsam_pl.training.callbacks.image_logger import ImageLogger
from efficientsam_pl.training.callbacks.periodic_drawing import PeriodicDrawing
from efficientsam_pl.visualization.features import feature_sheet, reconstruction_sheet

# Predicted patches as pixels: Float[b n c] and their images -> UInt8[b 3 s s]
Paint = Callable[[Tensor, Tensor], Tensor]


class FeatureVisualizer(PeriodicDrawing):
    """Write `pictures/step-N.png` every n steps and at the end, and to the run's logger.

    The module's `eval_model()` maps images and keys to predicted features and a split of the
    tokens, and its `target` maps a batch to the teacher's features. Every rank calls both with the
    same images, since under FSDP2 the others would wait for a rank that does not.
    """

    def __init__(
        self,
        folder: Path,
        every_steps: int,
        images: Callable[[], ImageBatch],
        paint: Paint | None = None,
        paused: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Configure the visualizations of one run.

        Args:
            folder: Folder of the run.
            every_steps: Optimizer steps between two visualizations.
            images: Reads the same few images on every rank; called once, at the first step drawn.
            paint: Converts a target of pixels to images; None: features as colours.
            paused: Context of the work, such as a paused clock.
        """
        super().__init__(every_steps, paused)
        self._image_logger = ImageLogger(folder / "pictures", "pictures/features")
        self._read, self._paint = images, paint
        self._images: ImageBatch | None = None

    @torch.no_grad()  # FSDP2 cannot use in training what was gathered in inference mode
    def _draw(self, trainer: L.Trainer, pl_module: Any, step: int) -> None:
        if self._images is None:
            self._images = self._read()
        batch = self._images.to(trainer.strategy.root_device)
        model = pl_module.eval_model()
        training = model.training
        model.eval()
        with trainer.precision_plugin.forward_context():
            target = pl_module.target(batch)
            predicted, split = model(batch.image, batch.sample_key)
        model.train(training)
        if trainer.is_global_zero and batch.valid.any():
            sheet = self._sheet(batch, target.float(), predicted.float(), split.masked)
            self._image_logger.log(trainer, sheet, step)

    def _sheet(
        self,
        batch: ImageBatch,
        target: Float[Tensor, "b n c"],
        predicted: Float[Tensor, "b n c"],
        masked: Int64[Tensor, "b m"],
    ) -> Image.Image:
        real = batch.valid.cpu().numpy()
        images = _channels_last(batch.image)[real]
        hidden = torch.zeros(predicted.shape[:2], dtype=torch.bool, device=masked.device)
        hidden = hidden.scatter(1, masked, True).cpu()
        cosines = F.cosine_similarity(predicted, target, dim=-1).mean(-1).tolist()
        titles = [
            f"{key}: cosine {cosine:.3f}"
            for key, cosine, valid in zip(batch.key, cosines, real, strict=True)
            if valid
        ]
        if self._paint is not None:
            reconstruction = _channels_last(self._paint(predicted, batch.image))[real]
            return reconstruction_sheet(images, hidden.numpy()[real], reconstruction, titles)
        theirs, ours = (features.cpu().numpy()[real] for features in (target, predicted))
        return feature_sheet(images, hidden.numpy()[real], theirs, ours, titles)


def _channels_last(image: UInt8[Tensor, "b 3 s s"]) -> UInt8[np.ndarray, "b s s 3"]:
    return image.permute(0, 2, 3, 1).cpu().numpy()
