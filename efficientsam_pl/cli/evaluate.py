"""`efficientsam evaluate`."""

from typing import Any

from efficientsam_pl.cli.config_options import add_config_command
from efficientsam_pl.cli.training import imported, stage_of_file
from efficientsam_pl.commands.evaluate.config import EvaluateConfig


def add(commands: Any) -> None:
    """Add the command."""
    add_config_command(commands, "evaluate", EvaluateConfig, _run)


def _run(config: EvaluateConfig) -> None:
    imported(stage_of_file(config.model.weights).evaluate)(config)
