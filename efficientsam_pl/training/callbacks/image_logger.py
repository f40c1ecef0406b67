"""Where a run's pictures go: a file in its folder, and its logger."""

import io
from pathlib import Path

import lightning as L  # noqa: N812
from lightning.pytorch.loggers import WandbLogger
from PIL import Image

from efficientsam_pl.storage.atomic import atomic_write_bytes
from efficientsam_pl.training.run.disk_guard import BestEffortWriter
from efficientsam_pl.training.run.loggers import TensorBoardFiles


class ImageLogger:
    """Pictures of one kind; a disk that is full costs them, not the run."""

    def __init__(self, folder: Path, name: str) -> None:
        """`folder`: of their files; `name`: under which the logger shows them."""
        self._folder, self._name = folder, name
        self._room = BestEffortWriter(
            f"pictures in {folder}", "they are left out until there is room"
        )

    def show(self, trainer: L.Trainer, image: Image.Image, step: int) -> None:
        """Writes `folder/step-N.png`, whole or not at all, and sends it to the run's logger."""
        content = io.BytesIO()
        image.save(content, format="png")
        path = self._folder / f"step-{step:08d}.png"
        self._room.attempt(lambda: atomic_write_bytes(path, content.getvalue()))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardFiles):
                logger.log_picture(self._name, image, step)
            elif isinstance(logger, WandbLogger):
                self._send(logger, image, step)

    def _send(self, logger: WandbLogger, image: Image.Image, step: int) -> None:
        """W&B keeps a file of it, too."""
        self._room.attempt(lambda: logger.log_image(self._name, [image], step))
