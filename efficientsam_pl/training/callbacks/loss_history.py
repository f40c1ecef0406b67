"""History of training and held-out losses."""

from typing import Any

import lightning as L  # noqa: N812

from efficientsam_pl.training.late_value import LateValues


class LossHistory(L.Callback):
    """Record at most a thousand training losses and all held-out losses, for the curves.

    A training loss on a GPU is recorded when the next step is queued, or when the losses are saved.
    """

    def __init__(self) -> None:
        self._step = 0
        self._values = LateValues()
        self._sent: int | None = None  # step whose values are not recorded yet
        self.train: list[tuple[int, float]] = []
        self.heldout: list[tuple[int, float]] = []

    def on_train_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Remember the step that the run resumes from."""
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        """Record the step's loss, once per step however many micro-batches it has."""
        step, every = trainer.global_step, max(1, trainer.max_steps // 1000)
        if step == self._step:
            return
        self._step = step
        self._record()
        if step % every == 0:
            self._values.send(pl_module.step_values)
            self._sent = step
            if self._values.at_once:
                self._record()

    def on_train_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Record the last loss."""
        self._record()

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
        self._record()
        return {"train": self.train, "heldout": self.heldout}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue a checkpoint's curves."""
        self.train = [(int(step), float(loss)) for step, loss in state_dict["train"]]
        self.heldout = [(int(step), float(loss)) for step, loss in state_dict["heldout"]]

    def _record(self) -> None:
        if self._sent is not None:
            loss, _ = self._values.read()
            self.train.append((self._sent, loss))
            self._sent = None
