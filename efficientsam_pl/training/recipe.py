"""The interface of a training stage: what `training.train.train` does not know of it.

`tests/training/toy_recipe.py` is the shortest example, docs/extending.md the guide.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import lightning as L  # noqa: N812

from efficientsam_pl.data.build import DatasetSplits
from efficientsam_pl.data.config import DataConfig
from efficientsam_pl.training.config import RecipeConfig
from efficientsam_pl.training.context import RunContext
from efficientsam_pl.training.datamodule import TrainingDataModule, TrainingDatasets
from efficientsam_pl.training.module import TrainingModule

C = TypeVar("C", bound=RecipeConfig)
R = TypeVar("R")  # what a finished run returns


@dataclass(frozen=True)
class Recipe(ABC, Generic[C, R]):
    """A training stage with its config; `train(recipe)` calls the methods in their order here.

    While it prepares the run, `train` replaces the config by one with the ranks, the pace and the
    folder of this very run, so that a recipe builds nothing before `datasets` is called. What
    several methods need is a `functools.cached_property`.
    """

    config: C
    name: ClassVar[str]  # in checkpoints: the stage that they belong to
    title: ClassVar[str]  # beside the progress bar

    def prepare_data(self, folder: Path) -> DataConfig:
        """Make shards where the config names a set of another form; return the config of shards.

        Args:
            folder: The run's, on this machine.
        """
        return self.config.data

    @abstractmethod
    def datasets(self, splits: DatasetSplits) -> TrainingDatasets:
        """Build the samples that are trained and validated on."""

    @abstractmethod
    def module(self) -> TrainingModule:
        """Build what is trained, on the CPU."""

    @abstractmethod
    def metadata(self) -> dict[str, Any]:
        """Describe the model for the checkpoint's header, as plain values.

        `model` decides with `frozen`, the modules that keep their weights, whether a checkpoint
        fits a resumed run. `model` and, if given, `teacher` and `features` go into exported files.
        """

    @abstractmethod
    def flops_per_image(self) -> int:
        """Count the work of a training step on one image: see `training.flops.step_flops`."""

    def describe_weights(self) -> str:
        """Say where the weights of a fresh run come from."""
        return f"from scratch (seed {self.config.run.seed})"

    def callbacks(self, run: RunContext, data: TrainingDataModule) -> list[L.Callback]:
        """Build the stage's own callbacks, which run before those of every stage."""
        return []

    def export_prefix(self) -> tuple[str, str]:
        """Name the exported part of the model and what its names begin with in an exported file.

        By default that is the whole model under its own names.
        """
        return "", ""

    @abstractmethod
    def finish(self, trainer: L.Trainer, run: RunContext) -> R:
        """Validate and write what a finished run leaves; every rank calls it.

        Records that are written here are uploaded afterwards, if the run's folder is remote.
        """
