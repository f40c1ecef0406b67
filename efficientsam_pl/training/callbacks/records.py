"""What a run writes about itself: losses, samples consumed, damage found."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812
import torch

from efficientsam_pl.data.shards import ShardIndex
from efficientsam_pl.errors import UserError
from efficientsam_pl.structures import Damage, ImageBatch, MaskBatch


class LossHistory(L.Callback):
    """Keeps training losses (a thousand at most) and all held-out ones, for the curves."""

    def __init__(self) -> None:
        self.train: list[tuple[int, float]] = []
        self.heldout: list[tuple[int, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Notes the step's loss."""
        if trainer.global_step % max(1, trainer.max_steps // 1000):
            return  # reading a loss makes a GPU wait
        self.train.append((trainer.global_step, float(trainer.callback_metrics["train/loss"])))

    def on_validation_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Notes the held-out loss."""
        loss = trainer.callback_metrics.get("heldout/loss")
        if loss is not None:
            self.heldout.append((trainer.global_step, float(loss)))


class ConsumedTrace(L.Callback):
    """Appends a line a micro-batch to `consumed.jsonl`: step, rank, sample keys, loss.

    From it anyone can check that every sample was used once an epoch.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "consumed.jsonl"
        self._step = 0

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Remembers the step this micro-batch works for."""
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """One line, written in one piece so that ranks may share the file."""
        line = {
            "step": self._step,
            "rank": trainer.global_rank,
            "keys": list(batch.key),
            "loss": float(outputs["loss"]) * trainer.accumulate_grad_batches,
        }
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


class DataReport(L.Callback):
    """Counts good and damaged samples, writes `data_report.json`, stops the run above a share.

    Ranks add their counts up every few steps, so that all of them stop at the same one.
    """

    def __init__(
        self, folder: Path, index: ShardIndex, max_bad_fraction: float, every_steps: int = 10
    ) -> None:
        self._path = folder / "data_report.json"
        self._most, self._every = max_bad_fraction, every_steps
        self._seen = 0
        self._damage: list[Damage] = list(index.damage)
        self._broken_shards = len(index.damage)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: ImageBatch | MaskBatch,
        batch_idx: int,
    ) -> None:
        """Counts, and stops where too much is damaged.

        Raises:
            UserError: The share of damaged samples is above the limit.
        """
        self._seen += len(batch.key)
        self._damage.extend(batch.damage)
        due = (batch_idx + 1) % (self._every * trainer.accumulate_grad_batches) == 0
        if not due and trainer.global_step < trainer.max_steps:
            return
        bad = len(self._damage) - self._broken_shards
        counts = torch.tensor([self._seen, bad], device=trainer.strategy.root_device)
        seen, bad = trainer.strategy.reduce(counts, reduce_op="sum").tolist()
        if bad > self._most * seen:
            self._write()
            raise UserError(
                f"{bad} of {seen} samples are damaged, more than shards.max_bad_fraction="
                f"{self._most}; they are listed in {self._path}"
            )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the report of rank 0's share."""
        if trainer.is_global_zero:
            self._write()

    def _write(self) -> None:
        bad = Counter(d.kind for d in self._damage)
        unusable = len(self._damage) - self._broken_shards
        report = {
            "seen": self._seen,
            "good": self._seen - unusable,
            "bad": dict(sorted(bad.items())),
            "list": [vars(d) for d in self._damage],
        }
        partial = self._path.with_suffix(".part")
        partial.write_text(json.dumps(report, indent=1) + "\n")
        partial.replace(self._path)
