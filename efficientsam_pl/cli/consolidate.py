"""`efficientsam consolidate`."""

import argparse
from typing import Any

from efficientsam_pl.cli.argument_types import command
from efficientsam_pl.cli.parser import path
from efficientsam_pl.errors import UserError
from efficientsam_pl.export.output_format import output_format


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(commands, "consolidate", "a checkpoint, or a run's newest, to one file")
    parser.add_argument(
        "--best", action="store_true", help="of a run: by trainer.best_metric, not the newest"
    )
    parser.add_argument(
        "checkpoint",
        type=path,
        metavar="CHECKPOINT",
        help="a run's folder, or one of its checkpoints: RUN/checkpoints/step-N",
    )
    parser.add_output(
        "out",
        kind="file",
        metavar="OUT.safetensors|OUT.pt",
        help="the file that is written; .pt: under the released names",
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    output_format(arguments.out)
    if not arguments.checkpoint.exists():
        raise UserError(f"no such checkpoint or run: {arguments.checkpoint}")
    from efficientsam_pl.commands import consolidate

    consolidate.run(arguments.checkpoint, arguments.out, arguments.best)
