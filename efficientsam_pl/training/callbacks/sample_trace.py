"""Trace of the samples that each micro-batch consumed."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812
import torch.distributed as dist

from efficientsam_pl.storage.jsonl import append_lines
from efficientsam_pl.training.late_value import LateValues
from efficientsam_pl.training.run.disk_guard import BestEffortWriter
from efficientsam_pl.training.run.rewind import truncate_jsonl


class SampleTrace(L.Callback):
    """Append a line per micro-batch to `consumed.jsonl`: step, rank, sample keys, loss.

    The file shows whether every sample was used once per epoch. `step` counts from 0; a checkpoint
    of step n contains the steps below n. Lines of later steps are removed when a run resumes from
    it, since these steps are trained again.

    Ranks of the first node share the file. Other nodes send their lines to rank 0 when a checkpoint
    is saved, as no network file system has an append that is safe from several hosts. Lines that a
    full disk rejects stay in memory. On a GPU a line is written when the next micro-batch is
    queued, so that reading its loss does not wait.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "consumed.jsonl"
        self._step = 0
        self._pending: list[bytes] = []
        self._loss = LateValues()
        self._open: dict[str, Any] | None = None  # a line whose loss is sent
        self._writer = BestEffortWriter(
            str(self._path), "its lines stay in memory while the disk is full"
        )

    def on_train_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Remove lines later than the run's checkpoint, before any rank adds a line."""
        self._pending.clear()
        self._open = None
        if trainer.is_global_zero:
            self._pending += truncate_jsonl(self._path, trainer.global_step)
        trainer.strategy.barrier()

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Remember the step that this micro-batch belongs to."""
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Append a line for the micro-batch."""
        self._close_line()
        self._open = {
            "step": self._step,
            "rank": trainer.global_rank,
            "keys": list(batch.key),
        }
        self._loss.send(outputs["mean"])
        if self._loss.at_once:
            self._close_line()
        if trainer.node_rank == 0 and self._writer.is_due():
            self._write()

    def on_save_checkpoint(self, trainer: L.Trainer, *args: Any) -> None:
        """Write all lines so far; collective."""
        self._gather(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write all remaining lines."""
        self._gather(trainer)

    def on_exception(self, trainer: L.Trainer, *args: Any) -> None:
        """Write this node's lines; other nodes may be gone."""
        with suppress(RuntimeError):  # the device may have failed
            self._close_line()
        if trainer.node_rank == 0:
            self._write()

    def _close_line(self) -> None:
        """Add the open line, with its loss, to those that are to be written."""
        if self._open is None:
            return
        line, self._open = self._open, None
        [loss] = self._loss.read()
        self._pending.append(json.dumps(line | {"loss": loss}).encode() + b"\n")

    def _gather(self, trainer: L.Trainer) -> None:
        self._close_line()
        if trainer.num_nodes > 1:
            remote_lines = self._pending if trainer.node_rank > 0 else []
            gathered: list[list[bytes]] = [[] for _ in range(trainer.world_size)]
            dist.all_gather_object(gathered, remote_lines)
            if trainer.node_rank > 0:
                self._pending = []
            if trainer.is_global_zero:
                self._pending += [line for lines in gathered for line in lines]
        if trainer.node_rank == 0:
            self._write()

    def _write(self) -> None:
        lines = b"".join(self._pending)
        if lines and self._writer.try_write(lambda: append_lines(self._path, lines)):
            self._pending = []
