"""`efficientsam quickstart`."""

import argparse
from pathlib import Path
from typing import Any

from efficientsam_pl import config as configs
from efficientsam_pl.arguments.forms import command, config_options, natural
from efficientsam_pl.errors import UserError


def add(commands: Any) -> None:
    """Adds the command."""
    parser = command(commands, "quickstart", "both stages, small, on photos at hand")
    parser.add_argument("--out", type=Path, default=Path("quickstart_out"), metavar="DIR")
    parser.add_argument("--seed", type=natural, default=0, metavar="N")
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--coco",
        nargs=2,
        type=Path,
        metavar=("ANNOTATIONS", "IMAGES"),
        help="a COCO-format set instead of scikit-image's photos",
    )
    source.add_argument(
        "--images", type=Path, metavar="DIR", help="your own photos, masks by Felzenszwalb's method"
    )
    parser.add_argument(
        "--teacher", metavar="FILE", help="a released SAM checkpoint instead of a random teacher"
    )
    config_options(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    loaded = configs.load(
        configs.QuickstartConfig, ["quickstart", *arguments.config], arguments.overrides
    )
    if arguments.print_config:
        print(configs.dump(loaded), end="")
        return
    for name in ("coco", "images", "teacher"):
        value = getattr(arguments, name)
        for path in [] if value is None else value if isinstance(value, list) else [value]:
            if not Path(path).exists():
                raise UserError(f"--{name}: no such file or folder: {path}")
    from efficientsam_pl.commands.quickstart import job

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
