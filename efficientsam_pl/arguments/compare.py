"""`efficientsam compare`."""

import argparse
from pathlib import Path
from typing import Any

from efficientsam_pl.arguments.forms import command


def add(commands: Any) -> None:
    """Adds the command."""
    parser = command(
        commands, "compare", "results of `evaluate` as one table, beside the paper's rows"
    )
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT.json")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the table as Markdown too")
    parser.add_argument("--no-paper", action="store_true", help="without the paper's rows")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from efficientsam_pl.commands import compare

    compare.run(arguments.results, arguments.markdown, not arguments.no_paper)
