"""`efficientsam evaluate`."""

from typing import Any

from efficientsam_pl.cli.config_options import add_config_command
from efficientsam_pl.commands.evaluate.config import EvaluateConfig


def add(commands: Any) -> None:
    """Add the command."""
    add_config_command(commands, "evaluate", EvaluateConfig, _run)


def _run(config: EvaluateConfig) -> None:
    from efficientsam_pl.commands.evaluate import command as evaluate

    evaluate.run(config)
