"""Where a run's pictures go: a file in its folder, and its logger."""

import io
from pathlib import Path

import lightning as L  # noqa: N812
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from PIL import Image

from efficientsam_pl.pictures.atomic import write_bytes


def publish(trainer: L.Trainer, folder: Path, name: str, image: Image.Image, step: int) -> None:
    """Writes `folder/step-N.png`, whole or not at all, and shows it under `name`."""
    content = io.BytesIO()
    image.save(content, format="png")
    write_bytes(folder / f"step-{step:08d}.png", content.getvalue())
    show(trainer, name, image, step)


def show(trainer: L.Trainer, name: str, image: Image.Image, step: int) -> None:
    """Sends a picture to the run's logger, if it takes pictures."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, np.array(image), step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(name, [image], step)
