"""Time the host's work for a step of an empty model: the loop, logging, callbacks, optimizer.

Started by `benchmarks.scaling`: python -m benchmarks.scaling.empty_loop FOLDER. Prints a line of
JSON, `LoopTimes`. The model is one weight, whose loss has four terms; everything else is a stage's:
`train` with the standard callbacks, and images of 32 pixels from a worker process.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import lightning as L  # noqa: N812
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.scaling.inputs import write_images
from efficientsam_pl.config.command_help import CommandHelp
from efficientsam_pl.config.load import load
from efficientsam_pl.data.build import DatasetSplits, build_order, build_reader
from efficientsam_pl.data.datasets.crops import CropDataset
from efficientsam_pl.data.schema import IMAGE_SUFFIXES
from efficientsam_pl.losses.terms import LossTerms
from efficientsam_pl.structures import ImageBatch, Region
from efficientsam_pl.training import train as training
from efficientsam_pl.training.config import RecipeConfig
from efficientsam_pl.training.context import RunContext
from efficientsam_pl.training.datamodule import TrainingDatasets
from efficientsam_pl.training.module import TrainingModule
from efficientsam_pl.training.parallelize import parallelize
from efficientsam_pl.training.recipe import Recipe

LOGGED_EVERY = 10  # steps, as in every run
_STEPS, _UNTIMED = 300, 60
_PIXELS = 32


@dataclass(frozen=True)
class LoopTimes:
    """Processor milliseconds a step, of all threads of the training process."""

    loop: float  # with all callbacks
    bare: float  # Lightning's own: the same module without callbacks, logger and data


@dataclass(frozen=True)
class EmptyLosses(LossTerms):
    """As many terms as SAMI's."""

    all: Tensor
    masked: Tensor
    visible: Tensor
    cosine: Tensor


class EmptyModel(nn.Module):
    """One weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def blocks(self) -> list[nn.Module]:
        """List nothing to shard."""
        return []

    def regions(self) -> list[Region]:
        """List nothing to compile."""
        return []


class EmptyStage(TrainingModule):
    """Loses the weight itself, whatever the batch."""

    def batch_losses(self, batch: ImageBatch) -> EmptyLosses:
        """Compute terms that are all the same."""
        loss = self.model.weight.sum()  # type: ignore[operator]
        return EmptyLosses(loss, loss, loss, loss, loss)


@dataclass(frozen=True, kw_only=True)
class EmptyConfig(RecipeConfig):
    """A stage without keys of its own."""

    HELP: ClassVar[CommandHelp]


class EmptyRecipe(Recipe[EmptyConfig, None]):
    """Train the empty model on crops."""

    name, title = "empty", "Empty model"

    def datasets(self, splits: DatasetSplits) -> TrainingDatasets:
        """Build crops of images."""
        data, seed = self.config.data, self.config.run.seed
        crops = CropDataset(build_reader(splits.train, IMAGE_SUFFIXES, data), None, _PIXELS, seed)
        return TrainingDatasets(crops, build_order(splits, data, seed), splits, None)

    def module(self) -> EmptyStage:
        """Build the stage as every recipe does."""
        config = self.config
        arrange = partial(parallelize, config=config.trainer)
        averages = config.trainer.ema_decay is not None
        return EmptyStage(EmptyModel(), config.optim, config.trainer.max_steps, arrange, averages)

    def metadata(self) -> dict[str, Any]:
        """Describe nothing."""
        return {"model": {}}

    def flops_per_image(self) -> int:
        """Return a number that no rate is derived from."""
        return 1

    def finish(self, trainer: L.Trainer, run: RunContext) -> None:
        """Leave nothing."""


class StepTimes(L.Callback):
    """Read the processor's time after each step."""

    def __init__(self) -> None:
        self._ended: list[float] = []

    def on_train_batch_end(self, *args: Any) -> None:
        """Record the end of a step."""
        self._ended.append(time.process_time())

    def milliseconds(self) -> float:
        """Least mean over as many steps as lie between two logged ones: load only adds to it."""
        ended = self._ended[_UNTIMED::LOGGED_EVERY]
        return min(1e3 * (later - earlier) / LOGGED_EVERY for earlier, later in pairwise(ended))


def loop_milliseconds(folder: Path, *overrides: str) -> float:
    """Run the empty stage with the standard callbacks in a folder."""
    shards = write_images(folder / "shards", 16, 1)
    times = StepTimes()
    standard: Any = training.standard_callbacks
    given = [f"run.dir={folder / 'run'}", f"data.train={shards}", "data.workers=1"]
    given += ["trainer.accelerator=cpu", "trainer.global_batch=1", "trainer.micro_batch=1"]
    given += [f"trainer.max_steps={_STEPS}", "optim.warmup_steps=1", "optim.peak_lr_batch=null"]
    with mock.patch.object(
        training, "standard_callbacks", lambda *parts: [times, *standard(*parts)]
    ):
        training.train(EmptyRecipe(load(EmptyConfig, [], [*given, *overrides])))
    return times.milliseconds()


class BareStage(L.LightningModule):
    """Loses its weight; logs nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.model = EmptyModel()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Compute the loss."""
        return self.model.weight.sum()

    def configure_optimizers(self) -> torch.optim.AdamW:
        """Build the optimizer that stages have."""
        return torch.optim.AdamW(self.parameters(), fused=True)


def bare_milliseconds() -> float:
    """Run the bare stage in Lightning's Trainer."""
    times = StepTimes()
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=_STEPS,
        callbacks=[times],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(BareStage(), DataLoader(TensorDataset(torch.zeros(_STEPS, 1)), batch_size=None))
    return times.milliseconds()


def main(argv: Sequence[str] | None = None) -> int:
    """Time both, and print the times as the last line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling.empty_loop")
    parser.description = (__doc__ or "").splitlines()[0]
    parser.add_argument("folder", type=Path, help="for shards and the run")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the config")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    times = LoopTimes(loop_milliseconds(options.folder, *options.overrides), bare_milliseconds())
    print(json.dumps(asdict(times)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
