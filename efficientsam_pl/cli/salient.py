"""`efficientsam salient`."""

import argparse
from typing import Any

from efficientsam_pl.cli.argument_types import (
    check_model,
    command,
    model_options,
    natural,
    positive,
)
from efficientsam_pl.cli.parser import path
from efficientsam_pl.errors import UserError
from efficientsam_pl.inference.salient.config import SalientConfig


def add(commands: Any) -> None:
    """Add the `salient` command."""
    parser = command(
        commands,
        "salient",
        "masks of the salient objects of photos, from saliency maps",
        "A folder of maps, or of ground truth, holds a file of each photo's stem: photos/boat.jpg, "
        "maps/boat.png. docs/salient.md explains how to get maps.",
    )
    model_options(parser)
    parser.add_argument(
        "--image",
        type=path,
        required=True,
        metavar="FILE|DIR",
        help="a photo, or a folder of photos",
    )
    parser.add_argument(
        "--saliency",
        type=path,
        required=True,
        metavar="FILE|DIR",
        help="grey pictures of 8 or 16 bits, or .npy of uint8 or of floats in [0, 1]",
    )
    parser.add_argument(
        "--truth", type=path, metavar="FILE|DIR", help="pictures, foreground above 128"
    )
    parser.add_output(
        "--out", kind="folder", required=True, metavar="DIR", help="where the pictures are written"
    )
    parser.add_argument(
        "--points", type=positive, default=3, metavar="N", help="clicks a region (default 3)"
    )
    parser.add_argument(
        "--threshold", type=float, default=0.5, metavar="T", help="of the map, (0, 1] (default 0.5)"
    )
    parser.add_argument(
        "--min-region-area",
        type=positive,
        default=100,
        metavar="PIXELS",
        help="smaller regions are counted and left out (default 100)",
    )
    parser.add_argument("--seed", type=natural, default=0, metavar="N", help="of the clicks")
    parser.add_output(
        "--json", kind="file", metavar="FILE", help="masks as run-lengths, scores, counts"
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    check_model(arguments)
    if not 0 < arguments.threshold <= 1:
        raise UserError(f"--threshold {arguments.threshold:g} must lie in (0, 1]")
    for option in ("image", "saliency", "truth"):
        named = getattr(arguments, option)
        if named is not None and not named.exists():
            raise UserError(f"--{option}: no such file or folder: {named}")
    from efficientsam_pl.commands.salient import command as salient

    salient.run(
        salient.SalientOptions(
            weights=arguments.weights,
            model=arguments.model,
            image=arguments.image,
            saliency=arguments.saliency,
            truth=arguments.truth,
            out=arguments.out,
            json=arguments.json,
            config=SalientConfig(
                points=arguments.points,
                threshold=arguments.threshold,
                min_region_area=arguments.min_region_area,
                seed=arguments.seed,
            ),
        )
    )
