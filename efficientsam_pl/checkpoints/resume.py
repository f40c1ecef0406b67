"""Checkpoint to resume from: chosen by rank 0, checked, and read by every rank."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from efficientsam_pl.checkpoints.layout import CheckpointError
from efficientsam_pl.checkpoints.reader import CheckpointReader
from efficientsam_pl.checkpoints.select import latest_valid_checkpoint
from efficientsam_pl.config.diff import first_difference, flatten
from efficientsam_pl.errors import UserError
from efficientsam_pl.models.weights import FORMAT


def agree_on_checkpoint(where: Path, check: Callable[[CheckpointReader], None]) -> CheckpointReader:
    """Choose the checkpoint to resume from, the same on all ranks; collective.

    Args:
        where: A run's folder, or a checkpoint.
        check: Raises UserError if this run cannot resume from the checkpoint.

    Raises:
        UserError: There is no checkpoint, or none that this run can resume from.
    """
    message: list[Any] = [None]
    if not _is_distributed() or dist.get_rank() == 0:
        try:
            chosen = latest_valid_checkpoint(where)
            check(CheckpointReader(chosen))
            message = [(chosen, None)]
        except UserError as error:
            message = [(None, str(error))]
    if _is_distributed():
        dist.broadcast_object_list(message)
    chosen, failure = message[0]
    if failure is not None:
        raise CheckpointError(failure)
    return CheckpointReader(chosen)


def check_resumable(stored: CheckpointReader, header: dict[str, Any]) -> None:
    """Check, before any tensor is loaded, that a run can resume from a checkpoint.

    Args:
        stored: The checkpoint.
        header: The header of this run's checkpoints.

    Raises:
        UserError: The checkpoint has another model or other frozen parts.
    """
    difference = first_difference(_signature(stored.values[FORMAT]), _signature(header))
    if difference:
        raise UserError(
            f"{stored.folder} is of another model: {difference}; run.resume=none starts "
            "from scratch"
        )


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _signature(header: dict[str, Any]) -> dict[str, Any]:
    """Collect what determines which weights exist and are trained, by config key."""
    config = header["config"]
    given = {
        "trainer.ema_decay": config["trainer"]["ema_decay"],
        "optim.layer_decay": config["optim"].get("layer_decay"),
    }
    described = flatten(header["model"], "model.") | flatten(config.get("sami", {}), "sami.")
    return {
        "stage": header["stage"],
        "what is frozen": header.get("frozen"),
        **{key: None if value is None else "given" for key, value in given.items()},
        # a checkpoint of before a part could be chosen has none of it
        **{key: None if value == "none" else value for key, value in described.items()},
    }
