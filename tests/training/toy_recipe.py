"""A training stage of its own: predict the mean colour of an image.

python toy_recipe.py key=value ... [-- key=value ...]   trains it, once or several times
"""

import sys
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812
import torch
from torch import Tensor, nn

from efficientsam_pl.config.load import as_dict, load
from efficientsam_pl.data.build import DatasetSplits, build_order, build_reader
from efficientsam_pl.data.datasets.crops import CropDataset
from efficientsam_pl.data.schema import IMAGE_SUFFIXES
from efficientsam_pl.losses.terms import LossTerms
from efficientsam_pl.structures import ImageBatch
from efficientsam_pl.training.config import RecipeConfig
from efficientsam_pl.training.context import RunContext
from efficientsam_pl.training.datamodule import TrainingDatasets
from efficientsam_pl.training.flops import step_flops
from efficientsam_pl.training.module import TrainingModule
from efficientsam_pl.training.parallelize import parallelize
from efficientsam_pl.training.recipe import Recipe
from efficientsam_pl.training.train import train


@dataclass(frozen=True, kw_only=True)
class ColourModelConfig:
    """A small MLP on the pixels of an image."""

    image_size: int = 16
    width: int = 24
    depth: int = 2


@dataclass(frozen=True, kw_only=True)
class ColourConfig(RecipeConfig):
    model: ColourModelConfig = field(default_factory=ColourModelConfig)


class ColourModel(nn.Module):
    def __init__(self, config: ColourModelConfig) -> None:
        super().__init__()
        self.stem = nn.Linear(3 * config.image_size**2, config.width)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(config.width), nn.Linear(config.width, config.width))
            for _ in range(config.depth)
        )
        self.head = nn.Linear(config.width, 3)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image.float().flatten(1) / 255)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)  # type: ignore[no-any-return]

    def blocks(self) -> list[nn.Module]:
        return list(self.layers)


class ColourRegression(TrainingModule):
    def batch_losses(self, batch: ImageBatch) -> LossTerms:
        return LossTerms(self._loss(batch, self.model))

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        loss, images = self._loss(batch, self.eval_model()), int(batch.valid.sum())
        self.log("heldout/loss", loss, batch_size=images, sync_dist=True)

    def _loss(self, batch: ImageBatch, model: nn.Module) -> Tensor:
        colour = batch.image.float().mean((-2, -1)) / 255
        errors: Tensor = (model(batch.image) - colour).square().mean(-1)
        return (errors * batch.valid).sum() / batch.valid.sum().clamp(min=1)


class ColourRecipe(Recipe[ColourConfig, Path]):
    name, title = "colour", "Colour regression"

    def datasets(self, splits: DatasetSplits) -> TrainingDatasets:
        data, side, seed = self.config.data, self.config.model.image_size, self.config.run.seed

        def crops(*shards: Any) -> CropDataset:
            return CropDataset(build_reader(shards, IMAGE_SUFFIXES, data), None, side, seed)

        heldout = crops(splits.heldout) if splits.heldout else None
        order = build_order(splits, data, seed)
        return TrainingDatasets(crops(*splits.train), order, splits, heldout)

    def module(self) -> ColourRegression:
        config = self.config
        arrange = partial(parallelize, config=config.trainer)
        model = ColourModel(config.model)
        return ColourRegression(model, config.optim, config.trainer.max_steps, arrange)

    def metadata(self) -> dict[str, Any]:
        return {"model": as_dict(self.config.model)}

    def flops_per_image(self) -> int:
        model = self.config.model
        return step_flops(lambda: ColourModel(model), lambda m, x: m(x), model.image_size)

    def finish(self, trainer: L.Trainer, run: RunContext) -> Path:
        return run.last_checkpoint()


def main(*arguments: str) -> None:
    torch.set_num_threads(1)
    for is_run, overrides in groupby(arguments, lambda word: word != "--"):
        if is_run:
            train(ColourRecipe(load(ColourConfig, [], list(overrides))))


if __name__ == "__main__":
    main(*sys.argv[1:])
