"""`efficientsam check-coco`."""

import argparse
from pathlib import Path
from typing import Any

from efficientsam_pl.cli.argument_types import command
from efficientsam_pl.cli.parser import path_text
from efficientsam_pl.errors import UserError

_SOMETHING = 1  # exit code


def add(commands: Any) -> None:
    """Add the `check-coco` command."""
    parser = command(
        commands,
        "check-coco",
        "what is in an annotation file and its images, and what cannot be used",
        "Exit code: 0 all is good, 1 something was repaired, left out or is ambiguous, 2 a mistake "
        "of yours or a file that cannot be used.",
    )
    parser.add_argument("annotations", type=path_text, metavar="FILE", help="COCO's or LVIS's JSON")
    parser.add_argument(
        "images", type=path_text, metavar="IMAGES", help="the folder that its file names are in"
    )
    parser.add_argument(
        "--kind", choices=("coco", "lvis"), default="coco", help="the file's format (%(default)s)"
    )
    parser.add_argument(
        "--exif-orientation",
        choices=("apply", "ignore"),
        default="apply",
        help="for images whose EXIF rotation their size does not decide: annotated upright, or on "
        "pixels as they are stored (%(default)s)",
    )
    parser.add_argument(
        "--crowds",
        choices=("ignore", "objects"),
        default="ignore",
        help="annotations with iscrowd 1: ignored regions, or objects, such as the brush masks of "
        "CVAT (%(default)s)",
    )
    parser.add_output("--json", kind="file", metavar="FILE", help="a report with all entries")
    parser.set_defaults(run=_check)


def _check(arguments: argparse.Namespace) -> int:
    for path in (arguments.annotations, arguments.images):
        if "://" not in path and not Path(path).exists():
            raise UserError(f"no such file or folder: {path}")
    from efficientsam_pl.commands.check_coco.command import run
    from efficientsam_pl.commands.check_coco.survey import SetOptions

    options = SetOptions(
        arguments.annotations,
        arguments.images,
        arguments.kind,
        arguments.exif_orientation,
        arguments.crowds,
    )
    return 0 if run(options, arguments.json) else _SOMETHING
