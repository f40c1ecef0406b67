"""Argument types (numbers, points, boxes) and the options that several commands share."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from efficientsam_pl.cli.parser import Parser, path_text
from efficientsam_pl.cluster.launch import launch
from efficientsam_pl.errors import UserError
from efficientsam_pl.models.registry import segmenter_config
from efficientsam_pl.models.weights_source import unusable_reason
from efficientsam_pl.storage.retries import set_store_patience


def command(commands: Any, name: str, help_text: str, epilog: str | None = None) -> Parser:
    """Add a subcommand whose one-line help also serves as its description."""
    description = help_text[0].upper() + help_text[1:] + "."
    parser: Parser = commands.add_parser(
        name, help=help_text, description=description, epilog=epilog
    )
    parser.set_defaults(parser=parser)
    return parser


def model_options(parser: argparse.ArgumentParser) -> None:
    """Add `--weights` and `--model`, which `check_model` validates."""
    parser.add_argument(
        "--weights",
        required=True,
        type=path_text,
        metavar="FILE",
        help="the model's weights: a released file, or one of `efficientsam consolidate`",
    )
    parser.add_argument(
        "--model",
        type=path_text,
        metavar="NAME",
        help="efficient_sam_{ti,s}, efficient_sam_{ti,s}_interactive, sam_vit_{b,l,h} or a "
        "config file; may be left out for files of `efficientsam consolidate`",
    )


def check_model(arguments: argparse.Namespace) -> None:
    """Reject an unusable `--weights` file and an unknown `--model` before torch is imported."""
    if reason := unusable_reason(Path(arguments.weights)):
        raise UserError(f"--weights: {reason}")
    if arguments.model is not None:
        segmenter_config(arguments.model)


def array_options(parser: argparse.ArgumentParser) -> None:
    """Add `--array-index` and `--array-count`."""
    parser.add_argument(
        "--array-index",
        type=natural,
        metavar="I",
        help="this job of an array (SLURM's by default)",
    )
    parser.add_argument("--array-count", type=positive, metavar="N", help="jobs of the array")


def store_options(parser: argparse.ArgumentParser) -> None:
    """Add `--store-patience`, which takes effect as it is parsed: outputs are tried next."""
    parser.add_argument(
        "--store-patience",
        type=_store_patience,
        metavar="SECONDS",
        help="how long a remote store that fails is tried again (300); then exit code 75",
    )


def _store_patience(text: str) -> int:
    seconds = natural(text)
    set_store_patience(float(seconds))
    return seconds


def array_share(arguments: argparse.Namespace) -> Any:
    """Return the share of the work given by the array options, by default SLURM's.

    Raises:
        UserError: Only one of the two options is given, or the allocation is uneven.
    """
    launch()
    from efficientsam_pl.commands.pack import slurm_share
    from efficientsam_pl.data.packing.runner import ArrayShare

    index, count = arguments.array_index, arguments.array_count
    if (index is None) != (count is None):
        raise UserError("--array-index and --array-count go together")
    return slurm_share() if index is None else ArrayShare(index, count)


def cores() -> int:
    """Count the CPUs available to this process; a scheduler may restrict them."""
    return len(os.sched_getaffinity(0))


def box(text: str) -> tuple[float, ...]:
    """Parse a box given by two corners."""
    corners = numbers("X0,Y0,X1,Y1", 4)(text)
    x0, y0, x1, y1 = corners
    if x1 < x0 or y1 < y0:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no box X0,Y0,X1,Y1 with x0 <= x1 and y0 <= y1"
        )
    return corners


def numbers(form: str, *counts: int) -> Callable[[str], tuple[float, ...]]:
    """Build a parser of comma-separated numbers; its error message shows `form`.

    Args:
        form: The expected format.
        counts: Valid numbers of values.
    """

    def parse(text: str) -> tuple[float, ...]:
        try:
            values = tuple(float(part) for part in text.split(","))
        except ValueError:
            values = ()
        if len(values) not in counts:
            raise argparse.ArgumentTypeError(f"{text!r} is not of the form {form}")
        return values

    return parse


def point(text: str) -> tuple[float, float, int]:
    """Parse a click and its label, 1 by default."""
    x, y, *label = numbers("X,Y[,0|1]", 2, 3)(text)
    if label and label[0] not in (0, 1):
        raise argparse.ArgumentTypeError(f"{text!r}: the label must be 0 or 1")
    return x, y, int(label[0]) if label else 1


def natural(text: str) -> int:
    """Parse a non-negative integer."""
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number in [0, 2**63)")
    return int(text)


def positive(text: str) -> int:
    """Parse a positive integer."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive whole number")
    return int(text)
