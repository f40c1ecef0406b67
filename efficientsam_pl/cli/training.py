"""The training stages: one line each in STAGES. Their recipes are imported late, with torch."""

import importlib
from dataclasses import dataclass
from typing import Any

from efficientsam_pl.cli.config_options import add_config_command
from efficientsam_pl.cluster.signals import catch_signals
from efficientsam_pl.models.weights_stage import stage_of
from efficientsam_pl.recipes.classification.config import ClassifyConfig
from efficientsam_pl.recipes.detection.config import DetectConfig
from efficientsam_pl.recipes.promptable.config import FinetuneConfig
from efficientsam_pl.recipes.sami.config import PretrainConfig
from efficientsam_pl.recipes.semantic.config import SemanticTrainingConfig
from efficientsam_pl.training.config import RecipeConfig


@dataclass(frozen=True)
class Stage:
    """A stage's config, whose `HELP` is the command's, and its recipe as "module:class".

    `evaluate` and `predict`, as "module:function", are what these commands do with its exported
    files; predict None: masks from prompts. `predict_options` are those that its `predict` takes
    beside the file, the image and the folder.
    """

    config: type[RecipeConfig]
    recipe: str
    evaluate: str = "efficientsam_pl.commands.evaluate.command:run"
    predict: str | None = None
    predict_options: tuple[str, ...] = ()


STAGES = {
    "pretrain": Stage(PretrainConfig, "efficientsam_pl.recipes.sami.recipe:SamiRecipe"),
    "finetune": Stage(FinetuneConfig, "efficientsam_pl.recipes.promptable.recipe:PromptableRecipe"),
    "classify": Stage(
        ClassifyConfig,
        "efficientsam_pl.recipes.classification.recipe:ClassificationRecipe",
        evaluate="efficientsam_pl.commands.classification.evaluate:run",
        predict="efficientsam_pl.commands.classification.predict:run",
    ),
    "detect": Stage(
        DetectConfig,
        "efficientsam_pl.recipes.detection.recipe:DetectionRecipe",
        evaluate="efficientsam_pl.commands.detection.evaluate:run",
        predict="efficientsam_pl.commands.detection.predict:run",
        predict_options=("rle",),
    ),
    "semantic": Stage(
        SemanticTrainingConfig,
        "efficientsam_pl.recipes.semantic.recipe:SemanticRecipe",
        evaluate="efficientsam_pl.commands.semantic.evaluate:run",
        predict="efficientsam_pl.commands.semantic.predict:run",
    ),
}
_SEGMENTERS = STAGES["finetune"]  # released files name no stage


def add(commands: Any, name: str) -> None:
    """Add the command of a stage."""
    stage = STAGES[name]

    def run(config: RecipeConfig) -> None:
        catch_signals()  # torch is imported next, which takes a while
        build_recipe = imported(stage.recipe)
        from efficientsam_pl.training.train import train

        train(build_recipe(config))

    add_config_command(commands, name, stage.config, run)


def stage_of_file(weights: str | None) -> Stage:
    """Return the stage that wrote a weights file; that of segmenters where it names none."""
    return STAGES.get((weights and stage_of(weights)) or "", _SEGMENTERS)


def imported(place: str) -> Any:
    """Import what stands at "module:name"."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
