"""Stage one: the student predicts the teacher's features."""

from typing import Any

import lightning as L  # noqa: N812
from torch import Tensor, nn

from efficientsam_pl.losses.features import TokenLoss, mean_over_valid
from efficientsam_pl.models.sami import Sami
from efficientsam_pl.optim.adamw import lightning_form
from efficientsam_pl.optim.config import OptimConfig
from efficientsam_pl.structures import ImageBatch


class SamiPretraining(L.LightningModule):
    """Predicts all tokens' features from the visible ones, learns from the mean error."""

    def __init__(
        self, model: Sami, teacher: nn.Module, loss: TokenLoss, optim: OptimConfig, steps: int
    ) -> None:
        super().__init__()
        self.model, self.teacher, self.loss = model, teacher, loss
        self.optim, self.steps = optim, steps

    def training_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        """Logs `train/loss` and returns it."""
        loss = self._step(batch)
        self.log("train/loss", loss, batch_size=len(batch))
        return loss

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """Logs `heldout/loss`: fixed crops and masks, so that two steps compare.

        `heldout/photos` counts the photos it is over, all ranks together.
        """
        photos = int(batch.valid.sum())
        self.log("heldout/loss", self._step(batch), batch_size=photos, sync_dist=True)
        self.log("heldout/photos", float(photos), reduce_fx="sum", sync_dist=True)

    def configure_optimizers(self) -> Any:
        """AdamW and schedule of the student alone."""
        return lightning_form(self.model, self.optim, self.steps)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves the teacher out: its weights are the config's, and larger than the student."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in state.items() if not k.startswith("teacher.")}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Puts this run's teacher back where the checkpoint has none."""
        own = {f"teacher.{k}": v for k, v in self.teacher.state_dict().items()}
        checkpoint["state_dict"] = {**checkpoint["state_dict"], **own}

    def _step(self, batch: ImageBatch) -> Tensor:
        predicted, _ = self.model(batch.image, batch.draw_key)
        per_token = self.loss(predicted, self.teacher(batch.image))
        return mean_over_valid(per_token, batch.valid)
