"""`efficientsam compare`."""

import argparse
from typing import Any

from efficientsam_pl.cli.argument_types import command
from efficientsam_pl.cli.parser import path
from efficientsam_pl.errors import UserError


def add(commands: Any) -> None:
    """Add the `compare` command."""
    parser = command(
        commands, "compare", "results of `evaluate` as one table, beside the paper's rows"
    )
    parser.add_argument(
        "results",
        nargs="+",
        type=path,
        metavar="RESULT.json",
        help="what `evaluate` wrote; the table has a row of each",
    )
    parser.add_output("--markdown", kind="file", metavar="FILE", help="the table as Markdown too")
    parser.add_argument("--no-paper", action="store_true", help="without the paper's rows")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    for file in arguments.results:
        if not file.is_file():
            raise UserError(f"no such file: {file}")
    from efficientsam_pl.commands import compare

    compare.run(arguments.results, arguments.markdown, not arguments.no_paper)
