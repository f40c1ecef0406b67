"""The training stages: one line each in STAGES. Their recipes are imported late, with torch."""

import importlib
from dataclasses import dataclass
from typing import Any

from efficientsam_pl.cli.config_options import add_config_command
from efficientsam_pl.cluster.signals import catch_signals
from efficientsam_pl.recipes.promptable.config import FinetuneConfig
from efficientsam_pl.recipes.sami.config import PretrainConfig
from efficientsam_pl.training.config import RecipeConfig


@dataclass(frozen=True)
class Stage:
    """A stage's config, whose `HELP` is the command's, and its recipe as "module:class"."""

    config: type[RecipeConfig]
    recipe: str


STAGES = {
    "pretrain": Stage(PretrainConfig, "efficientsam_pl.recipes.sami.recipe:SamiRecipe"),
    "finetune": Stage(FinetuneConfig, "efficientsam_pl.recipes.promptable.recipe:PromptableRecipe"),
}


def add(commands: Any, name: str) -> None:
    """Add the command of a stage."""
    stage = STAGES[name]

    def run(config: RecipeConfig) -> None:
        catch_signals()  # torch is imported next, which takes a while
        module, _, recipe = stage.recipe.partition(":")
        build_recipe = getattr(importlib.import_module(module), recipe)
        from efficientsam_pl.training.train import train

        train(build_recipe(config))

    add_config_command(commands, name, stage.config, run)
