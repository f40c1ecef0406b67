"""Loggers of metrics and images: TensorBoard's files, or W&B."""

import contextlib
import os
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from uuid import uuid4

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from efficientsam_pl.errors import UserError
from efficientsam_pl.training.config import RunConfig, TrainerConfig
from efficientsam_pl.training.run.disk_guard import BestEffortWriter

_MIN_FREE_BYTES = 256 * 1024  # required before TensorBoard starts its next file


def check_logger(config: TrainerConfig) -> None:
    """Fail early if the configured logger is not installed.

    Raises:
        UserError: W&B is configured but not installed.
    """
    if config.logger != "wandb":
        return
    try:
        version("wandb")  # a folder of that name, which W&B leaves, could be imported too
    except PackageNotFoundError:
        raise UserError(
            "trainer.logger=wandb needs another package: pip install 'efficientsam_pl[wandb]'"
        ) from None


def build_logger(run: RunConfig, config: TrainerConfig, step: int = 0) -> Logger:
    """Build the run's logger, whose files go to `RUN/log`.

    Args:
        run: The run, with a local folder.
        config: Selects the logger.
        step: Step of the checkpoint that the run resumes from; what was logged for later steps is
            purged.

    Raises:
        UserError: W&B is configured but not installed.
    """
    check_logger(config)
    folder = Path(run.dir)
    if config.logger == "tensorboard":
        return TensorBoardRunLogger(folder, step)
    return WandbRunLogger(
        save_dir=folder / "log",
        project="efficientsam_pl",
        name=folder.resolve().name,
        id=_wandb_id(folder / "log" / "wandb_id", resumes=run.resume != "none"),
    )


class TensorBoardRunLogger(TensorBoardLogger):
    """TensorBoard's files in `RUN/log`; a full disk does not stop the run.

    On a full disk TensorBoard's writer thread dies, and the next call raises its error. The file is
    then abandoned, and a new one is started once the disk has space.
    """

    def __init__(self, folder: Path, step: int) -> None:
        """`step`: the one that the run resumes from; its images are already logged."""
        resumed = any((folder / "log").glob("events.out.tfevents.*"))
        super().__init__(folder, name="log", version="", purge_step=step + 1 if resumed else None)
        self._writer = BestEffortWriter(
            f"TensorBoard's files in {self.log_dir}", "curves will have a gap"
        )

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log scalars."""
        log = super().log_metrics
        self._try(lambda: log(dict(metrics), step))

    @rank_zero_only
    def log_image(self, name: str, image: Image.Image, step: int) -> None:
        """Log an image."""
        pixels = np.array(image)
        self._try(lambda: self.experiment.add_image(name, pixels, step, dataformats="HWC"))

    @rank_zero_only
    def save(self) -> None:
        """Flush pending values, without starting an empty file."""
        if self._experiment is not None:
            self._try(super().save)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Flush pending values and close the file."""
        if self._experiment is not None:
            finalize = super().finalize
            self._try(lambda: finalize(status))

    def _try(self, write: Callable[[], None]) -> None:
        if self._writer.is_due():
            self._writer.try_write(lambda: self._write(write))

    def _write(self, write: Callable[[], None]) -> None:
        if self._writer.full:
            _check_free_space(Path(self.log_dir))
        try:
            write()
        except Exception:
            self._abandon_file()
            raise

    def _abandon_file(self) -> None:
        if self._experiment is None:
            return
        with contextlib.suppress(Exception):  # it raises its thread's error again
            self._experiment.close()
        self._experiment = None
        self._kwargs.pop("purge_step", None)  # the next file continues where this one ends


def _check_free_space(folder: Path) -> None:
    """Raise OSError if the disk is still full, so that no empty event file is started."""
    probe = folder / f".space.{os.getpid()}"
    try:
        with probe.open("wb") as file:
            file.write(bytes(_MIN_FREE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    finally:
        probe.unlink(missing_ok=True)


class WandbRunLogger(WandbLogger):
    """W&B logger that ends its run with the trainer, so that the next training gets its own."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Send pending values and end the run."""
        super().finalize(status)
        if self._experiment is not None:
            self._experiment.finish(exit_code=0 if status == "success" else 1)
            self._experiment = None


@rank_zero_only
def _wandb_id(path: Path, resumes: bool) -> str:
    """Read or create the id of the W&B run, stored so that a resumed run continues its curves."""
    if not (resumes and path.exists()):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(uuid4().hex)
    return path.read_text()
