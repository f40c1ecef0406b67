"""`efficientsam quickstart`."""

import argparse
from pathlib import Path
from typing import Any

from efficientsam_pl.cli.argument_types import command, natural
from efficientsam_pl.cli.config_options import config_options, read_config
from efficientsam_pl.cli.parser import path, path_text
from efficientsam_pl.commands.quickstart.config import QuickstartConfig
from efficientsam_pl.errors import UserError
from efficientsam_pl.models.weights_source import unusable_reason


def add(commands: Any) -> None:
    """Add the `quickstart` command."""
    parser = command(commands, "quickstart", "both stages, small, on photos at hand")
    parser.add_output(
        "--out",
        kind="folder",
        default=Path("quickstart_out"),
        metavar="DIR",
        help="where everything is written (%(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=natural,
        default=0,
        metavar="N",
        help="of all random draws (%(default)s)",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--coco",
        nargs=2,
        type=path,
        metavar=("ANNOTATIONS", "IMAGES"),
        help="a COCO-format set instead of scikit-image's photos",
    )
    source.add_argument(
        "--images", type=path, metavar="DIR", help="your own photos, masks by Felzenszwalb's method"
    )
    parser.add_argument(
        "--teacher",
        type=path_text,
        metavar="FILE",
        help="a released SAM checkpoint instead of a random teacher",
    )
    config_options(parser, QuickstartConfig)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    loaded = read_config(QuickstartConfig, arguments, ["quickstart"])
    if loaded is None:
        return
    if arguments.teacher is not None and (reason := unusable_reason(Path(arguments.teacher))):
        raise UserError(f"--teacher: {reason}")
    for name in ("coco", "images"):
        value = getattr(arguments, name)
        for named in [] if value is None else value if isinstance(value, list) else [value]:
            if not Path(named).exists():
                raise UserError(f"--{name}: no such file or folder: {named}")
    from efficientsam_pl.commands.quickstart import command as job

    job.run(
        job.QuickstartOptions(
            out=arguments.out,
            seed=arguments.seed,
            coco=None if arguments.coco is None else tuple(arguments.coco),
            images=arguments.images,
            teacher=arguments.teacher,
        ),
        loaded,
    )
