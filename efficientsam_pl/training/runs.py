"""A run's folder, and a fit in it: what both stages share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812
import torch

from efficientsam_pl.data.sets import TrainingSets
from efficientsam_pl.training.callbacks.checkpoints import RunCheckpoints, newest_checkpoint
from efficientsam_pl.training.callbacks.damage import DataReport
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
    """What every run has: progress, checkpoints, the report on its data, and a trace if asked.

    Args:
        stage: Shown beside the progress bar.
        run: The folder they write to.
        config: When checkpoints are due.
        header: What a checkpoint tells about itself.
        data: The training sets, and the share of damaged samples that stops the run.
    """
    folder = Path(run.dir)
    callbacks: list[L.Callback] = [
        StageProgress(stage, config.global_batch),
        DataReport(folder, *data),
        RunCheckpoints(run, config, header),
    ]
    return [*callbacks, ConsumedTrace(folder)] if run.trace else callbacks


def fit(
    task: L.LightningModule,
    data: StreamDataModule,
    run: RunConfig,
    config: TrainerConfig,
    callbacks: Sequence[L.Callback],
    clip_norm: float | None,
) -> tuple[L.Trainer, LossHistory]:
    """Trains to the last step, from the run's newest checkpoint if there is one."""
    history = LossHistory()
    trainer = build_trainer(run, config, [*callbacks, history], data.validates(), clip_norm)
    checkpoint = newest_checkpoint(run)
    trainer.fit(task, datamodule=data, ckpt_path=checkpoint)
    return trainer, history
