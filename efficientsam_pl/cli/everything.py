"""`efficientsam everything`."""

import argparse
from dataclasses import fields, replace
from typing import Any

from efficientsam_pl.cli.argument_types import (
    check_model,
    command,
    model_options,
    natural,
    positive,
)
from efficientsam_pl.cli.parser import path, path_text
from efficientsam_pl.errors import UserError
from efficientsam_pl.inference.automask.config import PRESETS, EverythingConfig

_OPTIONS: dict[str, tuple[Any, str, str]] = {  # names are SAM's
    "points_per_side": (positive, "N", "clicks a side of the grid"),
    "points_per_batch": (positive, "N", "points per forward pass: affects memory, not results"),
    "pred_iou_thresh": (float, "T", "keep masks of a predicted IoU above; <= 0: all"),
    "stability_score_thresh": (float, "T", "keep masks that are at least so stable; <= 0: all"),
    "stability_score_offset": (float, "T", "logits by which the cut is moved for stability"),
    "box_nms_thresh": (float, "T", "IoU of boxes of duplicates; above 1: keep them"),
    "crop_n_layers": (natural, "N", "look also at 4, 16, ... crops of the photo"),
    "crop_nms_thresh": (float, "T", "as --box-nms-thresh, between crops"),
    "crop_overlap_ratio": (float, "T", "of the photo's shorter side, in the first layer"),
    "crop_n_points_downscale_factor": (positive, "N", "a layer's grid is so many times coarser"),
    "min_mask_region_area": (natural, "PIXELS", "fill smaller holes and drop smaller islands"),
}


def add(commands: Any) -> None:
    """Add the `everything` command."""
    parser = command(
        commands,
        "everything",
        "masks of everything in a photo, or in each photo of a folder",
        "Writes OUT/NAME_overlay.png and OUT/NAME_masks.png of each photo.",
    )
    model_options(parser)
    parser.add_argument(
        "--image",
        type=path,
        required=True,
        metavar="FILE|DIR",
        help="a photo, or a folder of photos",
    )
    parser.add_output(
        "--out", kind="folder", required=True, metavar="DIR", help="where the pictures are written"
    )
    parser.add_output(
        "--json",
        kind="either",
        metavar="FILE|DIR",
        help="SAM's records of the photo; for a folder of photos a folder of NAME.json",
    )
    parser.add_output(
        "--shards",
        kind="folder",
        type=path_text,
        metavar="DIR",
        help="photos and masks as shards in SA-1B's layout, for finetuning; local or in a store",
    )
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        default="sam",
        help="sam: SAM's generator (default); notebook: EfficientSAM's released notebook",
    )
    for name, (kind, metavar, text) in _OPTIONS.items():
        default = "/".join(f"{getattr(preset, name):.4g}" for preset in _distinct(name))
        parser.add_argument(
            _option(name), type=kind, metavar=metavar, help=f"{text} (default {default})"
        )
    parser.add_argument(
        "--candidates",
        choices=("all", "best"),
        help="per point: all of its masks, or the one with the highest predicted IoU",
    )
    parser.add_argument(
        "--accelerator",
        choices=("auto", "cpu", "gpu"),
        default="auto",
        help="where the model runs; auto: a GPU where there is one (default)",
    )
    parser.set_defaults(run=_run)


def _distinct(name: str) -> list[EverythingConfig]:
    """Return all presets if an option differs between them, otherwise the first."""
    every = list(PRESETS.values())
    return every if len({getattr(preset, name) for preset in every}) > 1 else every[:1]


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _config(arguments: argparse.Namespace) -> EverythingConfig:
    names = (*_OPTIONS, "candidates")
    given = {name: getattr(arguments, name) for name in names}
    try:
        return replace(
            PRESETS[arguments.preset],
            **{name: value for name, value in given.items() if value is not None},
        )
    except ValueError as error:
        message = str(error)
        for field in sorted(fields(EverythingConfig), key=lambda f: -len(f.name)):
            message = message.replace(f"{field.name}=", f"{_option(field.name)}=")
        raise UserError(message) from error


def _run(arguments: argparse.Namespace) -> None:
    config = _config(arguments)
    check_model(arguments)
    if not arguments.image.exists():
        raise UserError(f"--image: no such file or folder: {arguments.image}")
    from efficientsam_pl.commands.everything import command as everything

    everything.run(
        everything.EverythingOptions(
            weights=arguments.weights,
            model=arguments.model,
            image=arguments.image,
            out=arguments.out,
            json=arguments.json,
            shards=arguments.shards,
            accelerator=arguments.accelerator,
            config=config,
        )
    )
