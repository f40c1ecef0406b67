"""Runs of a stage in a process of its own, with the collectives of each micro-batch counted.

python one_run.py STAGE CONFIG.yaml COUNTS.json key=value ... [-- STAGE CONFIG.yaml ...]

COUNTS may be `-`: what is compiled runs as it is where calls are watched. Runs that follow each
other in one process save the seconds in which torch is imported.
"""

import json
import sys
from itertools import groupby
from pathlib import Path
from typing import Any
from unittest import mock

import lightning as L  # noqa: N812
import torch

from benchmarks.scaling.collectives import Collectives
from efficientsam_pl.config import load as configs
from efficientsam_pl.recipes.classification.config import ClassifyConfig
from efficientsam_pl.recipes.classification.recipe import ClassificationRecipe
from efficientsam_pl.recipes.detection.config import DetectConfig
from efficientsam_pl.recipes.detection.recipe import DetectionRecipe
from efficientsam_pl.recipes.promptable.config import FinetuneConfig
from efficientsam_pl.recipes.promptable.recipe import PromptableRecipe
from efficientsam_pl.recipes.sami.config import PretrainConfig
from efficientsam_pl.recipes.sami.recipe import SamiRecipe
from efficientsam_pl.recipes.semantic.config import SemanticTrainingConfig
from efficientsam_pl.recipes.semantic.recipe import SemanticRecipe
from efficientsam_pl.training import train as training


class CountedCollectives(L.Callback):
    """Writes how often each collective is called between a micro-batch's start and its end."""

    def __init__(self, path: Path) -> None:
        self._path, self._counts = path, []  # type: ignore[var-annotated]

    def on_train_batch_start(self, *args: Any) -> None:
        self._mode = Collectives()
        self._mode.__enter__()  # type: ignore[no-untyped-call]

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        self._counts.append(dict(self._mode.seen().calls))
        if trainer.is_global_zero:
            self._path.write_text(json.dumps(self._counts))


def run(stage: str, file: str, counts: str, *overrides: str) -> None:
    recipe: Any
    recipe, root = {
        "pretrain": (SamiRecipe, PretrainConfig),
        "finetune": (PromptableRecipe, FinetuneConfig),
        "classify": (ClassificationRecipe, ClassifyConfig),
        "detect": (DetectionRecipe, DetectConfig),
        "semantic": (SemanticRecipe, SemanticTrainingConfig),
    }[stage]
    standard = training.standard_callbacks
    counter = [] if counts == "-" else [CountedCollectives(Path(counts))]
    with mock.patch.object(
        training, "standard_callbacks", lambda *given: [*counter, *standard(*given)]
    ):
        training.train(recipe(configs.load(root, [file], overrides)))


def main(*arguments: str) -> None:
    torch.set_num_threads(1)
    for several, given in groupby(arguments, lambda one: one != "--"):
        if several:
            run(*given)


if __name__ == "__main__":
    main(*sys.argv[1:])
