"""Held-out images of a recipe: its batches, and the scores of its model before training."""

from collections.abc import Iterator, Sequence
from typing import Any

import lightning as L  # noqa: N812

from efficientsam_pl.data.build import open_splits
from efficientsam_pl.training.datamodule import TrainingDataModule
from efficientsam_pl.training.recipe import Recipe


def heldout_batches(recipe: Recipe[Any, Any]) -> Iterator[Any]:
    """Yield the batches that a run validates on, each image once."""
    yield from _data(recipe).val_dataloader()


def untrained_scores(recipe: Recipe[Any, Any], metrics: Sequence[str]) -> dict[str, float]:
    """Validate a recipe's model as it is before its first step."""
    data = _data(recipe)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False
    )
    [scores] = trainer.validate(recipe.module(), datamodule=data, verbose=False)
    return {metric: float(scores[metric]) for metric in metrics}


def _data(recipe: Recipe[Any, Any]) -> TrainingDataModule:
    config = recipe.config
    splits = open_splits(config.data, check_sizes=True)
    return TrainingDataModule(recipe.datasets(splits), config.data, config.trainer)
