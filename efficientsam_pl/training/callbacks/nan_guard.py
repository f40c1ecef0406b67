"""A run whose loss is no number any more stops, names the photos, and keeps its good checkpoint."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812
import torch
import torch.distributed as dist
from torch import Tensor

from efficientsam_pl.errors import UserError

_TOLD = 8  # photos


@dataclass
class _Step:
    """The micro-batches of one optimizer step on this rank, and how the step came out."""

    number: int
    keys: list[tuple[str, ...]] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    norm: Tensor | None = None


class NanGuard(L.Callback):
    """Looks at each step's gradient norm one step later, so that the device is not waited for.

    The norm is over all ranks, so all of them stop at the same step. It is also looked at before
    a checkpoint is written: what follows a step that is no number is never saved.
    """

    def __init__(self, folder: Path) -> None:
        """`folder`: the run's, named in the message."""
        self._folder = folder
        self._open: _Step | None = None
        self._ended: _Step | None = None
        self._copied: torch.cuda.Event | None = None  # when the norm of `_ended` has arrived

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Notes the photos of a micro-batch."""
        if self._open is None:
            self._open = _Step(trainer.global_step)
        self._open.keys.append(batch.key)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, *args: Any
    ) -> None:
        """Looks at the step before, where this micro-batch has ended one.

        Raises:
            UserError: Its gradient is no number.
        """
        assert self._open is not None
        self._open.losses.append(outputs["mean"])
        if trainer.global_step == self._open.number:
            return
        self._look()
        norm: Tensor = pl_module.gradient_norm
        self._open.norm = norm.detach().to("cpu", non_blocking=True)
        self._copied = torch.cuda.Event() if norm.is_cuda else None
        if self._copied is not None:
            self._copied.record()
        self._ended, self._open = self._open, None

    def on_save_checkpoint(self, trainer: L.Trainer, *args: Any) -> None:
        """Looks at the step that is about to be saved.

        Raises:
            UserError: Its gradient is no number.
        """
        self._look()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Looks at the last step.

        Raises:
            UserError: Its gradient is no number.
        """
        self._look()

    def _look(self) -> None:
        step = self._ended
        if step is None or step.norm is None:
            return
        if self._copied is not None:
            self._copied.synchronize()
        if not step.norm.isfinite():
            _stop(step, self._folder)


def _stop(step: _Step, folder: Path) -> None:
    """Every rank comes here, since the norm is one of all."""
    bad = [keys for keys, loss in zip(step.keys, step.losses, strict=True) if not loss.isfinite()]
    gathered: list[Any] = [(bad, step.keys)]
    if dist.is_available() and dist.is_initialized():
        gathered = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, (bad, step.keys))
    by_loss = any(of_rank for of_rank, _ in gathered)  # else a finite loss has an endless gradient
    named = [of_rank if by_loss else every for of_rank, every in gathered]
    keys = [key for micro_batches in named for some in micro_batches for key in some if key]
    more = f" and {len(keys) - _TOLD} more" if len(keys) > _TOLD else ""
    raise UserError(
        f"step {step.number + 1}: the {'loss' if by_loss else 'gradient'} is no finite number, "
        f"with the photos {', '.join(keys[:_TOLD])}{more}; nothing was saved since, "
        f"{folder}/latest names the last good checkpoint, if there is one"
    )
