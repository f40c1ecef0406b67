"""What a run writes about itself: losses and samples consumed."""

import json
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812
import torch.distributed as dist

from efficientsam_pl.storage.jsonl import append_lines
from efficientsam_pl.training.run.disk_guard import BestEffortWriter
from efficientsam_pl.training.run.rewind import cut_lines


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

    def heldout_step(self) -> int | None:
        """The step of the last validation; None before the first."""
        return self.heldout[-1][0] if self.heldout else None

    def on_validation_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Notes the held-out loss."""
        loss = trainer.callback_metrics.get("heldout/loss")
        if loss is not None:
            self.heldout.append((trainer.global_step, float(loss)))

    @property
    def state_key(self) -> str:
        """Name the state in checkpoints, whatever the class is called."""
        return "LossHistory"

    def state_dict(self) -> dict[str, Any]:
        """The losses so far: a resumed run's curves begin where the run did."""
        return {"train": self.train, "heldout": self.heldout}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue a checkpoint's curves."""
        self.train = [(int(step), float(loss)) for step, loss in state_dict["train"]]
        self.heldout = [(int(step), float(loss)) for step, loss in state_dict["heldout"]]


class SampleTrace(L.Callback):
    """Appends a line a micro-batch to `consumed.jsonl`: step, rank, sample keys, loss.

    From it anyone can check that every sample was used once an epoch. `step` counts from 0; a
    checkpoint of step n holds the steps below n. Lines of later ones are cut when a run goes on
    from it, since these are trained again.

    Ranks of the first node share the file. Those of other nodes hand their lines to rank 0 when a
    checkpoint is saved: no network file system has an append that several hosts may use. What a
    full disk refuses waits in memory.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "consumed.jsonl"
        self._step = 0
        self._waiting: list[bytes] = []
        self._room = BestEffortWriter(
            str(self._path), "its lines wait in memory until there is room"
        )

    def on_train_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Cuts what the run's checkpoint does not hold, before any rank adds a line."""
        self._waiting.clear()
        if trainer.is_global_zero:
            self._waiting += cut_lines(self._path, trainer.global_step)
        trainer.strategy.barrier()

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Remembers the step this micro-batch works for."""
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """One line."""
        line = {
            "step": self._step,
            "rank": trainer.global_rank,
            "keys": list(batch.key),
            "loss": float(outputs["mean"]),
        }
        self._waiting.append(json.dumps(line).encode() + b"\n")
        if trainer.node_rank == 0 and self._room.due():
            self._write()

    def on_save_checkpoint(self, trainer: L.Trainer, *args: Any) -> None:
        """Has all lines so far in the file; every rank calls it."""
        self._gather(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Has all lines in the file."""
        self._gather(trainer)

    def on_exception(self, trainer: L.Trainer, *args: Any) -> None:
        """Has this node's lines in the file: other nodes may be gone."""
        if trainer.node_rank == 0:
            self._write()

    def _gather(self, trainer: L.Trainer) -> None:
        if trainer.num_nodes > 1:
            far = self._waiting if trainer.node_rank > 0 else []
            gathered: list[list[bytes]] = [[] for _ in range(trainer.world_size)]
            dist.all_gather_object(gathered, far)
            if trainer.node_rank > 0:
                self._waiting = []
            if trainer.is_global_zero:
                self._waiting += [line for lines in gathered for line in lines]
        if trainer.node_rank == 0:
            self._write()

    def _write(self) -> None:
        lines = b"".join(self._waiting)
        if lines and self._room.attempt(lambda: append_lines(self._path, lines)):
            self._waiting = []
