"""Skeleton of every training stage: `train(recipe)`."""

from collections.abc import Sequence
from dataclasses import replace

import lightning as L  # noqa: N812
import torch

from efficientsam_pl.checkpoints.select import latest_checkpoint
from efficientsam_pl.cluster.launch import launch
from efficientsam_pl.cluster.signals import catch_signals
from efficientsam_pl.config.load import as_dict
from efficientsam_pl.data.build import DatasetSplits, open_splits, warn_of_shared_content
from efficientsam_pl.errors import one_line
from efficientsam_pl.storage.retries import SourceLostError, set_store_patience
from efficientsam_pl.training.callbacks.checkpoint import RunCheckpoints
from efficientsam_pl.training.callbacks.data_report import DataReport
from efficientsam_pl.training.callbacks.ema import EmaWeights
from efficientsam_pl.training.callbacks.nan_guard import NanGuard
from efficientsam_pl.training.callbacks.overdue_validation import OverdueValidation
from efficientsam_pl.training.callbacks.preemption import Preemption
from efficientsam_pl.training.callbacks.progress_bar import TrainingProgressBar
from efficientsam_pl.training.callbacks.rank_consistency import RankConsistency
from efficientsam_pl.training.callbacks.sample_trace import SampleTrace
from efficientsam_pl.training.callbacks.step_logger import StepLogger
from efficientsam_pl.training.callbacks.throughput import Throughput
from efficientsam_pl.training.callbacks.watchdog import Watchdog
from efficientsam_pl.training.context import RunContext, print_line, run_context
from efficientsam_pl.training.datamodule import TrainingDataModule
from efficientsam_pl.training.recipe import C, R, Recipe
from efficientsam_pl.training.run.folder import RunFolder, open_run
from efficientsam_pl.training.trainer import build_trainer, check_hardware


def train(recipe: Recipe[C, R]) -> R:
    """Train a stage in its run's folder, from its newest checkpoint if there is one.

    Every rank calls it; ranks are those that a launcher has started, or are started here.

    Raises:
        UserError: The config does not fit the machine, the data, or the run in the folder.
        SavedAndStopped: The run was preempted, or lost its store; its state is saved.
        SourceLostError: It lost its store where it could not save.
    """
    catch_signals()
    given = recipe.config
    set_store_patience(given.store_patience_s())
    recipe = replace(recipe, config=replace(given, trainer=given.trainer.on(launch())))
    check_hardware(recipe.config.trainer)
    folder = open_run(recipe.config, launch())
    recipe, splits = _prepare(recipe, folder)
    config = recipe.config
    data = TrainingDataModule(recipe.datasets(splits), config.data, config.trainer)
    module = recipe.module()
    header = {
        "stage": recipe.name,
        "config": as_dict(replace(config, run=given.run)),
        "export_prefix": list(recipe.export_prefix()),
        **recipe.metadata(),
    }
    precision = torch.bfloat16 if config.trainer.precision == "bf16" else torch.float32
    throughput = Throughput(config.trainer.global_batch, recipe.flops_per_image, precision)
    run = run_context(config, folder, header, splits, throughput.paused)
    if run.resume_path() is None and launch().rank == 0:  # else they are a checkpoint's
        print_line(f"weights: {recipe.describe_weights()}")
    callbacks = [
        *recipe.callbacks(run, data),
        *standard_callbacks(recipe.title, run, splits, config.data.max_bad_fraction),
        throughput,  # last: what the others wait for is no waiting for data
    ]
    trainer = fit(module, data, run, callbacks)
    result = recipe.finish(trainer, run)
    if trainer.is_global_zero:
        folder.send_records()
    return result


def _prepare(recipe: Recipe[C, R], folder: RunFolder) -> tuple[Recipe[C, R], DatasetSplits]:
    """Open the sets, and give the recipe the config of this run's folder, data and pace."""
    config = replace(recipe.config, run=replace(recipe.config.run, dir=str(folder.local)))
    config = replace(config, data=replace(recipe, config=config).prepare_data(folder.local))
    # before a model is built: a pattern may match nothing
    splits = open_splits(config.data, check_sizes=launch().rank == 0)
    if launch().rank == 0:
        warn_of_shared_content(splits)
    config = replace(
        config,
        trainer=config.trainer.paced(splits.samples()),
        optim=config.optim.for_batch(config.trainer.global_batch),
    )
    return replace(recipe, config=config), splits


def standard_callbacks(
    title: str, run: RunContext, splits: DatasetSplits, max_bad_fraction: float
) -> list[L.Callback]:
    """Build the callbacks of every stage: progress, reports, checkpoints, and what stops a run.

    Args:
        title: Shown beside the progress bar.
        run: The run's.
        splits: The training sets.
        max_bad_fraction: The share of corrupt samples that stops the run.
    """
    config, folder = run.trainer, run.folder.local
    callbacks: list[L.Callback] = [
        RankConsistency(run.header | {"resumed from": run.resume_name()}),
        TrainingProgressBar(title, config.global_batch),
        StepLogger(),
        DataReport(folder, splits, max_bad_fraction),
        NanGuard(folder),
    ]
    if config.ema_decay is not None:
        callbacks.append(EmaWeights(config.ema_decay))
    if run.run.trace:
        callbacks.append(SampleTrace(folder))
    # it saves what the others do, then the run may end
    checkpoints = RunCheckpoints(config, run.header, run.retention, run.files.writer)
    return [
        *callbacks,
        checkpoints,
        Preemption(run.interruption, checkpoints.save_now, run.folder),
        Watchdog(float(run.interruption.hang_s)),
    ]


def fit(
    module: L.LightningModule,
    data: TrainingDataModule,
    run: RunContext,
    callbacks: Sequence[L.Callback],
) -> L.Trainer:
    """Train to the last step, from the checkpoint that the run's config names, if there is one.

    Raises:
        UserError: The checkpoint is of another version or model, or its place is in other data.
    """
    trainer = build_trainer(
        run.run,
        run.trainer,
        [run.history, *callbacks, OverdueValidation(run.trainer.validate_every_steps)],
        data.validates(),
        run.interruption,
        run.files,
        run.resume_step(),
    )
    try:
        trainer.fit(module, datamodule=data, ckpt_path=run.resume_path())
    except SourceLostError as error:
        latest = latest_checkpoint(run.folder.local)
        saved = "nothing is saved" if latest is None else f"the last checkpoint is {latest}"
        raise SourceLostError(f"{one_line(error)}; {saved}; the same command continues") from error
    return trainer
