"""Baseline of SAMI's loss: predicting the training set's mean feature of each position."""

import math
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import lightning as L  # noqa: N812
import torch
from jaxtyping import Float
from torch import Tensor

from efficientsam_pl.losses.config import FeatureLossConfig
from efficientsam_pl.losses.feature_loss import feature_losses
from efficientsam_pl.models.config import SamiConfig
from efficientsam_pl.models.masking import random_split
from efficientsam_pl.models.targets import Target
from efficientsam_pl.structures import ImageBatch
from efficientsam_pl.training.callbacks.watchdog import watched
from efficientsam_pl.training.datamodule import TrainingDataModule

# Random crops that the mean is taken over: for each image, and at most in all
_VIEWS, _CROPS = 8, 2048
Total = Callable[[Tensor], Tensor]


class MeanFeatureBaseline(L.Callback):
    """Log `heldout/mean_feature_loss` once, before the first step; ranks share the work."""

    def __init__(self, sami: SamiConfig, loss: FeatureLossConfig) -> None:
        """Measure the baseline of a student's loss; None until then, and without a held-out set."""
        self._sami, self._config = sami, loss
        self.loss: float | None = None

    @torch.no_grad()  # FSDP2 cannot train with parameters gathered in inference mode
    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Measure the loss, unless a checkpoint has restored it."""
        data: TrainingDataModule = trainer.datamodule  # type: ignore[attr-defined]
        if self.loss is not None or not data.validates():
            return
        device = trainer.strategy.root_device

        def total(value: Tensor) -> Tensor:
            return trainer.strategy.reduce(value, reduce_op="sum")

        crops = min(_VIEWS * data.samples(), _CROPS)
        first = islice(data.first_batches(), math.ceil(crops / data.samples_per_micro_step()))
        mean = mean_features(pl_module.target, _moved(watched(first, trainer), device), total)
        heldout = _moved(watched(data.val_dataloader(), trainer), device)
        self.loss = self._constant_loss(pl_module.target, mean, heldout, total)
        if trainer.logger is not None:
            trainer.logger.log_metrics({"heldout/mean_feature_loss": self.loss}, step=0)

    @property
    def state_key(self) -> str:
        """Name the state in checkpoints, whatever the class is called."""
        return "MeanFeatureBaseline"

    def state_dict(self) -> dict[str, Any]:
        """Return the loss, for the checkpoint."""
        return {"loss": self.loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the loss, so that a resumed run need not measure it."""
        self.loss = state_dict["loss"]

    def _constant_loss(
        self,
        target: Target,
        constant: Float[Tensor, "1 n c"],
        batches: Iterable[ImageBatch],
        total: Total,
    ) -> float:
        """Return the loss of predicting the same features for every image; nan without images."""
        tokens, visible = self._sami.student.grid() ** 2, self._sami.visible_tokens()
        summed = torch.zeros(2, device=constant.device, dtype=torch.float64)
        for batch in batches:
            truth = target(batch)
            masked = random_split(batch.sample_key, tokens, visible).masked
            same = constant.expand_as(truth)
            loss = feature_losses(same, truth, masked, batch.valid, self._config).total
            count = batch.valid.sum()
            summed += torch.stack([loss * count, count])
        loss_sum, count = total(summed).tolist()
        return loss_sum / count if count else math.nan


def mean_features(
    target: Target, batches: Iterable[ImageBatch], total: Total
) -> Float[Tensor, "1 n c"]:
    """Average the feature at each position over the valid images, accumulated in float64.

    Args:
        target: Returns the features.
        batches: On the target's device; at least one.
        total: Sums a tensor over all ranks.
    """
    summed, count = None, None
    for batch in batches:
        valid = batch.valid[:, None, None]
        here = torch.where(valid, target(batch).double(), 0.0).sum(0, keepdim=True)
        summed = here if summed is None else summed + here
        count = valid.sum() if count is None else count + valid.sum()
    assert summed is not None and count is not None, "the training data is endless"  # noqa: PT018
    return (total(summed) / total(count).clamp(min=1)).float()


def _moved(batches: Iterable[ImageBatch], device: torch.device) -> Iterable[ImageBatch]:
    return (batch.to(device) for batch in batches)
