"""Where a run's numbers and pictures go: TensorBoard's files, or W&B."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from uuid import uuid4

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from efficientsam_pl.errors import UserError
from efficientsam_pl.training.config import RunConfig, TrainerConfig


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


def build_logger(run: RunConfig, config: TrainerConfig) -> Logger:
    """The run's logger; its files go to `RUN/log`.

    Raises:
        UserError: W&B asked for and not installed.
    """
    check_logger(config)
    folder = Path(run.dir)
    if config.logger == "tensorboard":
        return TensorBoardLogger(folder, name="log", version="")
    return OwnWandbRun(
        save_dir=folder / "log",
        project="efficientsam_pl",
        name=folder.resolve().name,
        id=_wandb_id(folder / "log" / "wandb_id", goes_on=run.resume == "auto"),
    )


class OwnWandbRun(WandbLogger):
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
