"""State that the parts of a run share: its config, folder, checkpoints, losses and speed."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from efficientsam_pl.checkpoints.layout import CheckpointError, read_manifest
from efficientsam_pl.checkpoints.reader import CheckpointReader
from efficientsam_pl.checkpoints.resume import check_resumable
from efficientsam_pl.checkpoints.select import latest_checkpoint
from efficientsam_pl.checkpoints.writer import CheckpointWriter
from efficientsam_pl.data.build import DatasetSplits
from efficientsam_pl.training.callbacks.loss_history import LossHistory
from efficientsam_pl.training.config import (
    InterruptionConfig,
    RecipeConfig,
    RunConfig,
    TrainerConfig,
)
from efficientsam_pl.training.run.folder import RunFolder
from efficientsam_pl.training.run.retention import CheckpointRetention
from efficientsam_pl.training.strategies import CheckpointFiles


@dataclass(frozen=True)
class RunContext:
    """A run's config, folder, checkpoints with their header, and losses.

    Work of callbacks inside `paused()` is no training time.
    """

    run: RunConfig
    trainer: TrainerConfig
    interruption: InterruptionConfig
    folder: RunFolder
    header: dict[str, Any]
    retention: CheckpointRetention
    files: CheckpointFiles
    paused: Callable[[], AbstractContextManager[None]]
    history: LossHistory = field(default_factory=LossHistory)

    def resume_path(self) -> Path | None:
        """Return a run's folder or a checkpoint to resume from; rank 0 chooses in a folder."""
        resume = self.folder.resume
        if resume == "none":
            return None
        if resume != "auto":
            return Path(resume)
        return self.folder.local if latest_checkpoint(self.folder.local) is not None else None

    def resume_name(self) -> str | None:
        """Name of the checkpoint this rank would resume from; all ranks must agree."""
        newest = self._newest()
        return None if newest is None else newest.name

    def resume_step(self) -> int:
        """Step that the run most likely resumes from: curves of later ones are drawn again."""
        newest = self._newest()
        try:
            return 0 if newest is None else read_manifest(newest).step
        except CheckpointError:  # refused, or replaced by another, when the run is loaded
            return 0

    def last_checkpoint(self) -> Path:
        """Return the newest checkpoint of a finished run."""
        checkpoint = latest_checkpoint(self.folder.local)
        assert checkpoint is not None, "a finished run has saved its last step"
        return checkpoint

    def _newest(self) -> Path | None:
        path = self.resume_path()
        return None if path is None else latest_checkpoint(path) or path


def run_context(
    config: RecipeConfig,
    folder: RunFolder,
    header: Mapping[str, Any],
    splits: DatasetSplits,
    paused: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> RunContext:
    """Collect what the parts of a run share.

    Args:
        config: The stage's, for this run's ranks and pace.
        folder: The run's, on this machine.
        header: What a command needs to rebuild the model; the data's provenance is added.
        splits: The training sets.
        paused: Opened by callbacks around work that is no training.
    """
    whole = {**header, "data": _provenance(splits)}
    trainer = config.trainer
    retention = CheckpointRetention(folder, trainer)
    writer = CheckpointWriter(
        trainer.checkpoint_writing,
        retention.set_latest,
        retention.upload_files,
        node_local=folder.apart,
    )
    files = CheckpointFiles(writer, partial(_check_and_print, header=whole))
    return RunContext(
        config.run, trainer, config.interruption, folder, whole, retention, files, paused
    )


def print_line(line: str) -> None:
    """Print a line as it is, however long."""
    Console().print(line, soft_wrap=True, markup=False, highlight=False)


def _check_and_print(stored: CheckpointReader, header: dict[str, Any]) -> None:
    """Check on rank 0, before a checkpoint is loaded, that it fits the run."""
    check_resumable(stored, header)
    print_line(f"weights: all from {stored.folder}, step {stored.manifest.step}")


def _provenance(splits: DatasetSplits) -> list[dict[str, Any]]:
    """List counts and names by which the training sets can be recognised."""
    return [
        {
            "shards": len(shards.shards),
            "samples": len(shards),
            "first": Path(shards.shards[0].path).name,
            "fingerprint": shards.fingerprint(),
        }
        for shards in splits.train
    ]
