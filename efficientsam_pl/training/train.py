"""A fit in a run's folder: what both stages share."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812
from rich.console import Console

from efficientsam_pl.checkpoints.layout import CheckpointError, read_manifest
from efficientsam_pl.checkpoints.reader import CheckpointReader
from efficientsam_pl.checkpoints.resume import check_resumable
from efficientsam_pl.checkpoints.select import latest_checkpoint
from efficientsam_pl.checkpoints.writer import CheckpointWriter
from efficientsam_pl.cluster.launch import launch
from efficientsam_pl.data.build import DatasetSplits
from efficientsam_pl.training.callbacks.checkpoint import RunCheckpoints
from efficientsam_pl.training.callbacks.data_report import DataReport
from efficientsam_pl.training.callbacks.ema import EmaWeights
from efficientsam_pl.training.callbacks.loss_history import LossHistory
from efficientsam_pl.training.callbacks.nan_guard import NanGuard
from efficientsam_pl.training.callbacks.overdue_validation import OverdueValidation
from efficientsam_pl.training.callbacks.preemption import Preemption
from efficientsam_pl.training.callbacks.progress_bar import TrainingProgressBar
from efficientsam_pl.training.callbacks.rank_consistency import RankConsistency
from efficientsam_pl.training.callbacks.sample_trace import SampleTrace
from efficientsam_pl.training.callbacks.step_logger import StepLogger
from efficientsam_pl.training.callbacks.watchdog import Watchdog
from efficientsam_pl.training.config import InterruptionConfig, RunConfig, TrainerConfig
from efficientsam_pl.training.datamodule import TrainingDataModule
from efficientsam_pl.training.run.folder import RunFolder
from efficientsam_pl.training.run.retention import CheckpointRetention
from efficientsam_pl.training.strategies import CheckpointFiles
from efficientsam_pl.training.trainer import build_trainer


@dataclass(frozen=True)
class RunContext:
    """Where a run lives, on what it runs, and what its checkpoints tell about themselves."""

    run: RunConfig
    trainer: TrainerConfig
    interruption: InterruptionConfig
    folder: RunFolder
    header: dict[str, Any]
    retention: CheckpointRetention
    files: CheckpointFiles


def run_context(
    run: RunConfig,
    trainer: TrainerConfig,
    interruption: InterruptionConfig,
    folder: RunFolder,
    header: dict[str, Any],
    sets: DatasetSplits,
) -> RunContext:
    """What the parts of a fit share.

    Args:
        run: Its seed and what it writes about itself.
        trainer: Its length and hardware.
        interruption: What ends it early.
        folder: That it lives in, on this machine.
        header: What a command needs to rebuild the model; of which data is added here.
        sets: The training sets.
    """
    header = header | {"data": _told(sets)}
    retention = CheckpointRetention(folder, trainer)
    writer = CheckpointWriter(
        trainer.checkpoint_writing,
        retention.set_latest,
        retention.upload_files,
        node_local=folder.apart,
    )
    files = CheckpointFiles(writer, partial(_check_and_print, header=header))
    return RunContext(run, trainer, interruption, folder, header, retention, files)


def standard_callbacks(
    stage: str, setting: RunContext, sets: DatasetSplits, max_bad_fraction: float
) -> list[L.Callback]:
    """What every run has: what it shows, what it keeps, and what stops it.

    Args:
        stage: Shown beside the progress bar.
        setting: The run's.
        sets: The training sets.
        max_bad_fraction: The share of damaged samples that stops the run.
    """
    config, folder = setting.trainer, setting.folder.local
    callbacks: list[L.Callback] = [
        RankConsistency(setting.header | {"resumed from": _newest(setting)}),
        TrainingProgressBar(stage, config.global_batch),
        StepLogger(),
        DataReport(folder, sets, max_bad_fraction),
        NanGuard(folder),
    ]
    if config.ema_decay is not None:
        callbacks.append(EmaWeights(config.ema_decay))
    if setting.run.trace:
        callbacks.append(SampleTrace(folder))
    # it saves what the others do, then the run may end
    checkpoints = RunCheckpoints(config, setting.header, setting.retention, setting.files.writer)
    return [
        *callbacks,
        checkpoints,
        Preemption(setting.interruption, checkpoints.save_now, setting.folder),
        Watchdog(float(setting.interruption.hang_s)),
    ]


def fit(
    task: L.LightningModule,
    data: TrainingDataModule,
    setting: RunContext,
    callbacks: Sequence[L.Callback],
) -> tuple[L.Trainer, LossHistory]:
    """Trains to the last step, from the checkpoint that the run's config names, if there is one.

    Raises:
        UserError: The checkpoint is of another version or model, or its place is in other data.
    """
    history = LossHistory()
    trainer = build_trainer(
        setting.run,
        setting.trainer,
        [history, *callbacks, OverdueValidation(setting.trainer.validate_every_steps)],
        data.validates(),
        setting.interruption,
        setting.files,
        _first_step(setting),
    )
    trainer.fit(task, datamodule=data, ckpt_path=_from(setting))
    return trainer, history


def print_weights(setting: RunContext, told: str) -> None:
    """Says where the weights come from, unless they are a checkpoint's, which is said later."""
    if _from(setting) is None and launch().rank == 0:
        _print(f"weights: {told}")


def _check_and_print(stored: CheckpointReader, header: dict[str, Any]) -> None:
    """On rank 0, before a checkpoint is loaded."""
    check_resumable(stored, header)
    step = stored.manifest.step
    _print(f"weights: all from {stored.folder}, step {step}")


def _print(line: str) -> None:
    Console().print(line, soft_wrap=True, markup=False, highlight=False)


def _from(setting: RunContext) -> Path | None:
    """A run's folder or a checkpoint to go on from; which one exactly, rank 0 finds out."""
    resume = setting.folder.resume
    if resume == "none":
        return None
    if resume != "auto":
        return Path(resume)
    return setting.folder.local if latest_checkpoint(setting.folder.local) is not None else None


def _first_step(setting: RunContext) -> int:
    """The step that the run most likely goes on from: curves of later ones are drawn anew."""
    where = _from(setting)
    newest = None if where is None else latest_checkpoint(where) or where
    try:
        return 0 if newest is None else read_manifest(newest).step
    except CheckpointError:  # it is told, or another is taken, when the run is loaded
        return 0


def _newest(setting: RunContext) -> str | None:
    """What this rank would go on from, by name: ranks on other machines must see the same."""
    where = _from(setting)
    newest = None if where is None else latest_checkpoint(where) or where
    return None if newest is None else newest.name


def _told(sets: DatasetSplits) -> list[dict[str, Any]]:
    """The training sets as provenance: from these counts and names anyone can tell them again."""
    return [
        {
            "shards": len(one.shards),
            "samples": len(one),
            "first": Path(one.shards[0].path).name,
            "fingerprint": one.fingerprint(),
        }
        for one in sets.train
    ]
