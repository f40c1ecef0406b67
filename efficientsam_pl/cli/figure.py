"""`efficientsam figure`."""

import argparse
from pathlib import Path
from typing import Any

from efficientsam_pl.cli.argument_types import command
from efficientsam_pl.cli.parser import path, path_text
from efficientsam_pl.errors import UserError
from efficientsam_pl.models.registry import segmenter_config
from efficientsam_pl.models.weights_source import unusable_reason


def add(commands: Any) -> None:
    """Add the `figure` command."""
    parser = command(
        commands,
        "figure",
        "photos beside the masks of several models, as in the paper",
        "The spec file lists images and their prompts (docs/salient.md). A model is given as "
        "'TITLE=NAME:WEIGHTS', for instance 'SAM=sam_vit_h:sam_vit_h_4b8939.pth', or, if the "
        "weights file names its model, as 'TITLE=WEIGHTS'.",
    )
    parser.add_argument(
        "--spec",
        type=path,
        required=True,
        metavar="FILE",
        help="images and their prompts, as YAML or JSON",
    )
    parser.add_argument(
        "--model",
        action="append",
        required=True,
        type=path_text,
        metavar="TITLE=[NAME:]WEIGHTS",
        help="a column; repeatable, from left to right",
    )
    parser.add_output(
        "--out",
        kind="file",
        action="append",
        required=True,
        metavar="FILE.{png,svg,pdf}",
        help="repeatable: the same figure in several forms",
    )
    parser.set_defaults(run=_run)


def model_column(text: str) -> tuple[str, str | None, str]:
    """Parse the title, the model name (or None) and the weights file of a column.

    Raises:
        UserError: The format is invalid, the file is missing, or the model is unknown.
    """
    title, equals, rest = text.partition("=")
    name, colon, file = rest.partition(":")
    if Path(rest).is_file() or not colon:  # a file's own name may hold a colon
        name, file = "", rest
    if not (title and equals and file) or (colon and not name and not Path(rest).is_file()):
        raise UserError(f"--model {text!r} is not of the form TITLE=[NAME:]WEIGHTS")
    if reason := unusable_reason(Path(file)):
        raise UserError(f"--model {text!r}: {reason}")
    if name:
        segmenter_config(name)
    return title, name or None, file


def _run(arguments: argparse.Namespace) -> None:
    columns = [model_column(text) for text in arguments.model]
    titles = [title for title, _, _ in columns]
    for title in titles:
        if titles.count(title) > 1:
            raise UserError(f"--model: two columns are called {title!r}")
    for file in arguments.out:
        if file.suffix.lower() not in (".png", ".svg", ".pdf"):
            raise UserError(f"--out: {file} must end in .png, .svg or .pdf")
    from efficientsam_pl.commands.figure.spec import read_spec

    spec = read_spec(arguments.spec)
    from efficientsam_pl.commands.figure import command as figure

    figure.run(
        figure.FigureOptions(
            spec=spec,
            columns=tuple(figure.Column(*column) for column in columns),
            out=tuple(arguments.out),
        )
    )
