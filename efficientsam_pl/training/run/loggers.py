"""Where a run's numbers and pictures go: TensorBoard's files, or W&B."""

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

_ROOM = 256 * 1024  # bytes that must be free before TensorBoard's next file is begun


def check_logger(config: TrainerConfig) -> None:
    """Stops before anything large is built.

    Raises:
        UserError: W&B asked for and not installed.
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
    """The run's logger; its files go to `RUN/log`.

    Args:
        run: The run; its folder is a local one.
        config: Which logger.
        step: Of the checkpoint that the run goes on from: what an earlier start has logged of
            later steps is not drawn.

    Raises:
        UserError: W&B asked for and not installed.
    """
    check_logger(config)
    folder = Path(run.dir)
    if config.logger == "tensorboard":
        return TensorBoardFiles(folder, step)
    return WandbRun(
        save_dir=folder / "log",
        project="efficientsam_pl",
        name=folder.resolve().name,
        id=_wandb_id(folder / "log" / "wandb_id", goes_on=run.resume != "none"),
    )


class TensorBoardFiles(TensorBoardLogger):
    """TensorBoard's files in `RUN/log`, without which a run goes on where the disk is full.

    The writer's thread ends with an error, which the next call meets. The file is left as it is
    then, and another one is begun when there is room.
    """

    def __init__(self, folder: Path, step: int) -> None:
        """`step`: that the run goes on from; pictures of this very step are logged already."""
        begun = any((folder / "log").glob("events.out.tfevents.*"))
        super().__init__(folder, name="log", version="", purge_step=step + 1 if begun else None)
        self._room = BestEffortWriter(
            f"TensorBoard's files in {self.log_dir}", "curves have a gap there"
        )

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs scalars."""
        log = super().log_metrics
        self._try(lambda: log(dict(metrics), step))

    @rank_zero_only
    def log_picture(self, name: str, image: Image.Image, step: int) -> None:
        """Logs a picture."""
        pixels = np.array(image)
        self._try(lambda: self.experiment.add_image(name, pixels, step, dataformats="HWC"))

    @rank_zero_only
    def save(self) -> None:
        """Writes what is waiting; begins no file for nothing."""
        if self._experiment is not None:
            self._try(super().save)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Writes what is waiting and closes the file."""
        if self._experiment is not None:
            finalize = super().finalize
            self._try(lambda: finalize(status))

    def _try(self, write: Callable[[], None]) -> None:
        if self._room.due():
            self._room.attempt(lambda: self._write(write))

    def _write(self, write: Callable[[], None]) -> None:
        if self._room.full:
            _check_room(Path(self.log_dir))
        try:
            write()
        except Exception:
            self._leave_file()
            raise

    def _leave_file(self) -> None:
        if self._experiment is None:
            return
        with contextlib.suppress(Exception):  # it raises what its thread has met, once more
            self._experiment.close()
        self._experiment = None
        self._kwargs.pop("purge_step", None)  # the next file goes on where this one ends


def _check_room(folder: Path) -> None:
    """Raises OSError where the disk is still full; a file of events is not begun in vain."""
    probe = folder / f".room.{os.getpid()}"
    try:
        with probe.open("wb") as file:
            file.write(bytes(_ROOM))
            file.flush()
            os.fsync(file.fileno())
    finally:
        probe.unlink(missing_ok=True)


class WandbRun(WandbLogger):
    """W&B's run ends when the trainer's does: what the process trains next gets its own."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Sends what is left."""
        super().finalize(status)
        if self._experiment is not None:
            self._experiment.finish(exit_code=0 if status == "success" else 1)
            self._experiment = None


@rank_zero_only
def _wandb_id(path: Path, goes_on: bool) -> str:
    """W&B's name of the run, kept beside it, so that a resumed run draws on its own curves."""
    if not (goes_on and path.exists()):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(uuid4().hex)
    return path.read_text()
