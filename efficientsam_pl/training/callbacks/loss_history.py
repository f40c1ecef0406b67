"""History of training and held-out losses."""

from typing import Any

import lightning as L  # noqa: N812


class LossHistory(L.Callback):
    """Record at most a thousand training losses and all held-out losses, for the curves."""

    def __init__(self) -> None:
        self._step = 0
        self.train: list[tuple[int, float]] = []
        self.heldout: list[tuple[int, float]] = []

    def on_train_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Remember the step that the run resumes from."""
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Record the step's loss, once per step however many micro-batches it has."""
        step, every = trainer.global_step, max(1, trainer.max_steps // 1000)
        if step == self._step or step % every:
            return  # reading a loss waits for the GPU
        self._step = step
        self.train.append((trainer.global_step, float(trainer.callback_metrics["train/loss"])))

    def heldout_step(self) -> int | None:
        """Step of the last validation; None before the first."""
        return self.heldout[-1][0] if self.heldout else None

    def on_validation_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Record the held-out loss."""
        loss = trainer.callback_metrics.get("heldout/loss")
        if loss is not None:
            self.heldout.append((trainer.global_step, float(loss)))

    @property
    def state_key(self) -> str:
        """Name the state in checkpoints, whatever the class is called."""
        return "LossHistory"

    def state_dict(self) -> dict[str, Any]:
        """Losses so far, so that a resumed run has complete curves."""
        return {"train": self.train, "heldout": self.heldout}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue a checkpoint's curves."""
        self.train = [(int(step), float(loss)) for step, loss in state_dict["train"]]
        self.heldout = [(int(step), float(loss)) for step, loss in state_dict["heldout"]]
