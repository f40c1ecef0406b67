"""What a run goes on from: chosen by rank 0, checked, and read by every rank."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from efficientsam_pl.checkpoints.layout import CheckpointError
from efficientsam_pl.checkpoints.reader import CheckpointReader
from efficientsam_pl.checkpoints.select import sound_checkpoint
from efficientsam_pl.config.diff import first_difference, flatten
from efficientsam_pl.errors import UserError
from efficientsam_pl.models.weights import FORMAT


def agreed_checkpoint(where: Path, check: Callable[[CheckpointReader], None]) -> CheckpointReader:
    """The checkpoint to go on from, the same on all ranks; all of them call this.

    Args:
        where: A run's folder, or a checkpoint.
        check: Raises UserError where this run cannot go on from it.

    Raises:
        UserError: There is none, or none that this run can go on from.
    """
    told: list[Any] = [None]
    if not _several() or dist.get_rank() == 0:
        try:
            chosen = sound_checkpoint(where)
            check(CheckpointReader(chosen))
            told = [(chosen, None)]
        except UserError as error:
            told = [(None, str(error))]
    if _several():
        dist.broadcast_object_list(told)
    chosen, trouble = told[0]
    if trouble is not None:
        raise CheckpointError(trouble)
    return CheckpointReader(chosen)


def check_resumable(stored: CheckpointReader, header: dict[str, Any]) -> None:
    """Before any tensor is loaded: whether a run can go on from a checkpoint.

    Args:
        stored: The checkpoint.
        header: What this run's own checkpoints would tell.

    Raises:
        UserError: It is of a model of another shape or other frozen parts.
    """
    differs = first_difference(_shape(stored.values[FORMAT]), _shape(header))
    if differs:
        raise UserError(
            f"{stored.folder} is of another model: {differs}; run.resume=none begins anew"
        )


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _shape(header: dict[str, Any]) -> dict[str, Any]:
    """What decides which weights there are and which of them learn, by the config's keys."""
    config = header["config"]
    given = {
        "trainer.ema_decay": config["trainer"]["ema_decay"],
        "optim.layer_decay": config["optim"].get("layer_decay"),
    }
    return {
        "stage": header["stage"],
        "what is frozen": header.get("frozen"),
        **{key: None if value is None else "given" for key, value in given.items()},
        **flatten(header["model"], "model."),
        **flatten(config.get("sami", {}), "sami."),
    }
