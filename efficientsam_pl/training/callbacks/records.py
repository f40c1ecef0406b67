"""What a run writes about itself: losses and samples consumed."""

import json
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812


class LossHistory(L.Callback):
    """Keeps training losses (a thousand at most) and all held-out ones, for the curves."""

    def __init__(self) -> None:
        self._step = 0
        self.train: list[tuple[int, float]] = []
        self.heldout: list[tuple[int, float]] = []

    def on_train_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Notes the step that the run goes on from."""
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Notes the step's loss, once a step however many micro-batches it has."""
        step, every = trainer.global_step, max(1, trainer.max_steps // 1000)
        if step == self._step or step % every:
            return  # reading a loss makes a GPU wait
        self._step = step
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
            "loss": float(outputs["mean"]),
        }
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
