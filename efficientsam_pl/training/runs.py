"""A run's folder, and a fit in it: what both stages share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812
import torch
from lightning.pytorch.callbacks import LearningRateMonitor

from efficientsam_pl.data.sets import TrainingSets
from efficientsam_pl.training.callbacks.averaging import AveragedWeights
from efficientsam_pl.training.callbacks.checkpoints import (
    RunCheckpoints,
    check_resumable,
    newest_checkpoint,
)
from efficientsam_pl.training.callbacks.damage import DataReport
from efficientsam_pl.training.callbacks.divergence import DivergenceStop
from efficientsam_pl.training.callbacks.progress import StageProgress
from efficientsam_pl.training.callbacks.records import ConsumedTrace, LossHistory
from efficientsam_pl.training.config import RunConfig, TrainerConfig
from efficientsam_pl.training.datamodule import StreamDataModule
from efficientsam_pl.training.trainer import build_trainer


def open_run(run: RunConfig, config_yaml: str) -> Path:
    """Makes the run's folder, writes its `config.yaml`, and seeds torch for what is drawn in it."""
    folder = Path(run.dir)
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(config_yaml)
    torch.manual_seed(run.seed)
    return folder


def standard_callbacks(
    stage: str,
    run: RunConfig,
    config: TrainerConfig,
    header: dict[str, Any],
    data: tuple[TrainingSets, float],
) -> list[L.Callback]:
    """What every run has: what it shows, what it keeps, and what stops it.

    Args:
        stage: Shown beside the progress bar.
        run: The folder they write to.
        config: When checkpoints are due.
        header: What a checkpoint tells about itself; of which data is added here.
        data: The training sets, and the share of damaged samples that stops the run.
    """
    folder = Path(run.dir)
    callbacks: list[L.Callback] = [
        StageProgress(stage, config.global_batch),
        LearningRateMonitor(logging_interval="step"),
        DataReport(folder, *data),
        DivergenceStop(folder),
    ]
    if config.ema_decay is not None:
        callbacks.append(AveragedWeights(config.ema_decay))
    if run.trace:
        callbacks.append(ConsumedTrace(folder))
    header = header | {"data": _told(data[0])}
    return [*callbacks, RunCheckpoints(run, config, header)]  # last: it saves what the others do


def fit(
    task: L.LightningModule,
    data: StreamDataModule,
    run: RunConfig,
    config: TrainerConfig,
    callbacks: Sequence[L.Callback],
    header: dict[str, Any],
) -> tuple[L.Trainer, LossHistory]:
    """Trains to the last step, from the run's newest checkpoint if there is one.

    Raises:
        UserError: The checkpoint is of another version or model, or its place is in other data.
    """
    history = LossHistory()
    trainer = build_trainer(run, config, [history, *callbacks], data.validates())
    checkpoint = newest_checkpoint(run)
    if checkpoint is not None:
        check_resumable(checkpoint, header)
    trainer.fit(task, datamodule=data, ckpt_path=checkpoint)
    return trainer, history


def _told(sets: TrainingSets) -> list[dict[str, Any]]:
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
