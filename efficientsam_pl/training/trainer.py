"""The Trainer of both stages, built from a config."""

import logging
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import lightning as L  # noqa: N812
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from efficientsam_pl.cluster.launch import launch
from efficientsam_pl.errors import UserError
from efficientsam_pl.plural import counted
from efficientsam_pl.training.config import InterruptionConfig, RunConfig, TrainerConfig
from efficientsam_pl.training.run.loggers import build_logger, check_logger
from efficientsam_pl.training.strategies import (
    CheckpointFiles,
    SingleFileCheckpointIO,
    build_strategy,
)

_KNOWN_NOISE = (
    ".*module.s. in eval mode at the start of training.*",  # the frozen teacher
    ".*treespec, LeafSpec.*is deprecated.*",  # Lightning 2.6 with torch 2.15
    ".*does not have many workers.*",  # workers are the config's choice
    ".*val_dataloader.*but have no.*",
    ".*You're resuming from a checkpoint that ended before the epoch.*",  # ours is a position
    ".*is deprecated, please use `weights_only`.*",
    ".*`srun` command is available.*",  # whoever starts us without it means to
    ".*`broadcast_buffers` is deprecated.*",  # torch 2.11 knows no other name
    ".*FSDP2-wrapped module .* returned a view tensor.*",  # nothing is changed in place
)


def check_hardware(config: TrainerConfig) -> None:
    """Check GPUs and logger before anything large is built.

    Raises:
        UserError: More GPUs are requested than available, or the logger is not installed.
    """
    check_logger(config)
    devices, seen = config.devices or 1, torch.cuda.device_count()
    if config.accelerator == "gpu" and seen < devices:
        where = "in this allocation" if launch().kind == "slurm" else "from here"
        raise UserError(
            f"trainer.accelerator=gpu and trainer.devices={devices}, but {counted(seen, 'GPU')} "
            f"can be seen {where}"
        )


def build_trainer(
    run: RunConfig,
    config: TrainerConfig,
    callbacks: Sequence[L.Callback],
    validate: bool,
    interruption: InterruptionConfig,
    files: CheckpointFiles,
    step: int,
) -> L.Trainer:
    """Build a Trainer whose single epoch is the whole run: data is endless, steps are limited.

    Args:
        run: Folder (the logger's files go to `log/`).
        config: Length, batch and hardware.
        callbacks: All of them; none is added here.
        validate: Whether there is a held-out set.
        interruption: How long ranks wait for each other.
        files: How checkpoints are written and read.
        step: Step at which the run resumes; logged curves beyond it are rewritten.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in _KNOWN_NOISE:
        warnings.filterwarnings("ignore", message)
    # deterministic algorithms without filling every new tensor with NaN, which only serves to
    # detect uninitialised memory and costs a tenth of a small model's step on a CPU
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    precision: Literal["32-true", "bf16-mixed"] = (
        "32-true" if config.precision == "fp32" else "bf16-mixed"
    )
    return L.Trainer(
        accelerator=config.accelerator,
        devices=config.devices or 1,
        num_nodes=config.nodes or 1,
        strategy=build_strategy(config, interruption, files),
        plugins=_plugins(config, files),
        precision=precision,
        # FSDP2 cannot use in training what was gathered in inference mode
        inference_mode=config.strategy != "fsdp",
        max_steps=config.max_steps,
        accumulate_grad_batches=config.accumulate(),
        # counted in micro-batches, since the run is one epoch
        val_check_interval=config.validate_every_steps * config.accumulate(),
        check_val_every_n_epoch=None,
        limit_val_batches=None if validate else 0,
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
        logger=build_logger(run, config, step),
        log_every_n_steps=10,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,  # the streams deal their samples out themselves
        # on a GPU torch has no deterministic backward of a bicubic resize
        deterministic=config.accelerator == "cpu" or not torch.cuda.is_available(),
    )


def _plugins(config: TrainerConfig, files: CheckpointFiles) -> list[Any]:
    """Set the cluster environment explicitly: Lightning would guess, and requeue jobs itself."""
    environment = {
        "slurm": lambda: SLURMEnvironment(auto_requeue=False),
        "torchrun": TorchElasticEnvironment,
        "person": LightningEnvironment,
    }[launch().kind]()
    if config.strategy == "fsdp":
        return [environment]
    return [environment, SingleFileCheckpointIO(files)]
