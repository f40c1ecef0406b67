"""Runs of two steps in one process, logged to W&B: python one_wandb_run.py FOLDER RESUME..."""

import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from efficientsam_pl.data.build import DatasetSplits
from efficientsam_pl.optim.config import OptimConfig
from efficientsam_pl.training.callbacks.image_logger import ImageLogger
from efficientsam_pl.training.callbacks.step_logger import StepLogger
from efficientsam_pl.training.config import RecipeConfig, RunConfig, TrainerConfig
from efficientsam_pl.training.context import run_context
from efficientsam_pl.training.run.folder import RunFolder
from efficientsam_pl.training.trainer import build_trainer


class Counting(L.LightningModule):
    """Its loss is the number of the step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.log("train/loss", float(batch_idx))
        return self.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5)


class OnePicture(L.Callback):
    """At the end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        picture = Image.new("RGB", (30, 20), (255, 0, 0))
        ImageLogger(self._folder, "pictures/masks").log(trainer, picture, trainer.global_step)


def main(folder: str, *resumes: Any) -> None:
    warnings.filterwarnings("ignore")
    config = TrainerConfig(max_steps=2, accelerator="cpu", logger="wandb")
    no_sets = DatasetSplits((), (), None)
    for resume in resumes:
        run = RunConfig(dir=folder, resume=resume)
        callbacks = [StepLogger(), OnePicture(Path(folder) / "pictures")]
        whole = RecipeConfig(run=run, trainer=config, optim=OptimConfig(warmup_steps=1))
        place = RunFolder(Path(folder), None, resume)
        setting = run_context(whole, place, {}, no_sets)
        trainer = build_trainer(
            run, config, callbacks, False, setting.interruption, setting.files, 0
        )
        trainer.log_every_n_steps = 1  # type: ignore[attr-defined]
        trainer.fit(Counting(), DataLoader(torch.zeros(2, 1), batch_size=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
