"""Log visualizations: as a file in the run's folder and to its loggers."""

import io
from pathlib import Path

import lightning as L  # noqa: N812
from lightning.pytorch.loggers import WandbLogger
from PIL import Image

from efficientsam_pl.storage.atomic import atomic_write_bytes
from efficientsam_pl.training.run.disk_guard import BestEffortWriter
from efficientsam_pl.training.run.loggers import TensorBoardRunLogger


class ImageLogger:
    """Log images of one kind; on a full disk they are skipped, and the run continues."""

    def __init__(self, folder: Path, name: str) -> None:
        """`folder`: where their files go; `name`: their tag in the logger."""
        self._folder, self._name = folder, name
        self._writer = BestEffortWriter(
            f"images in {folder}", "they are skipped while the disk is full"
        )

    def log(self, trainer: L.Trainer, image: Image.Image, step: int) -> None:
        """Write `folder/step-N.png` atomically and send the image to the run's loggers."""
        content = io.BytesIO()
        image.save(content, format="png")
        path = self._folder / f"step-{step:08d}.png"
        self._writer.try_write(lambda: atomic_write_bytes(path, content.getvalue()))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardRunLogger):
                logger.log_image(self._name, image, step)
            elif isinstance(logger, WandbLogger):
                self._send(logger, image, step)

    def _send(self, logger: WandbLogger, image: Image.Image, step: int) -> None:
        """Send to W&B, which also writes a local file."""
        self._writer.try_write(lambda: logger.log_image(self._name, [image], step))
