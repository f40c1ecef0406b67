"""Stop a run on a non-finite loss, name the images, and keep the last good checkpoint."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812
import torch.distributed as dist
from torch import Tensor

from efficientsam_pl.errors import UserError
from efficientsam_pl.training.late_value import LateValues

_NAMED = 8  # images in the message


@dataclass
class _Step:
    """The micro-batches of one optimizer step on this rank."""

    number: int
    keys: list[tuple[str, ...]] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)


class NanGuard(L.Callback):
    """Check each step's gradient norm when the next step is queued, without waiting for the device.

    The norm is over all ranks, so all of them stop at the same step. It is also checked before a
    checkpoint is written: nothing is saved after a non-finite step.
    """

    def __init__(self, folder: Path) -> None:
        """`folder`: the run's, named in the message."""
        self._folder = folder
        self._open: _Step | None = None
        self._ended: _Step | None = None
        self._values = LateValues()  # of `_ended`: its loss and gradient norm

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the images of a micro-batch."""
        if self._open is None:
            self._open = _Step(trainer.global_step)
        self._open.keys.append(batch.key)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, *args: Any
    ) -> None:
        """Check the previous step, if this micro-batch completes one.

        Raises:
            UserError: Its gradient norm is not finite.
        """
        assert self._open is not None
        self._open.losses.append(outputs["mean"])
        if trainer.global_step == self._open.number:
            return
        self._check()
        self._values.send(pl_module.step_values)
        self._ended, self._open = self._open, None

    def on_save_checkpoint(self, trainer: L.Trainer, *args: Any) -> None:
        """Check the step that is about to be saved.

        Raises:
            UserError: Its gradient norm is not finite.
        """
        self._check()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the last step.

        Raises:
            UserError: Its gradient norm is not finite.
        """
        self._check()

    def _check(self) -> None:
        step, self._ended = self._ended, None
        if step is None:
            return
        _, norm = self._values.read()
        if not math.isfinite(norm):
            _stop(step, self._folder)


def _stop(step: _Step, folder: Path) -> None:
    """Raise on every rank, since all of them have the same norm."""
    bad = [keys for keys, loss in zip(step.keys, step.losses, strict=True) if not loss.isfinite()]
    gathered: list[Any] = [(bad, step.keys)]
    if dist.is_available() and dist.is_initialized():
        gathered = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, (bad, step.keys))
    bad_loss = any(bad for bad, _ in gathered)  # else a finite loss has a non-finite gradient
    named = [bad if bad_loss else step_keys for bad, step_keys in gathered]
    keys = [
        key for micro_batches in named for batch_keys in micro_batches for key in batch_keys if key
    ]
    more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
    raise UserError(
        f"non-finite {'loss' if bad_loss else 'gradient'} at step {step.number + 1} on images "
        f"{', '.join(keys[:_NAMED])}{more}; nothing was saved since, {folder}/latest names the "
        "last good checkpoint, if there is one"
    )
