"""`efficientsam predict`."""

import argparse
from typing import Any

from efficientsam_pl.cli.argument_types import (
    box,
    check_model,
    command,
    model_options,
    point,
    positive,
)
from efficientsam_pl.cli.parser import path
from efficientsam_pl.cli.training import imported, stage_of_file
from efficientsam_pl.errors import UserError

# of masks from prompts alone
_PROMPT_OPTIONS = ("model", "point", "box", "mask_input", "single_mask", "npz", "rle")


def add(commands: Any) -> None:
    """Add the `predict` command."""
    parser = command(
        commands, "predict", "masks of one photo from prompts, or its classes or objects"
    )
    model_options(parser)
    parser.add_argument("--image", type=path, required=True, metavar="FILE", help="a photo")
    parser.add_argument(
        "--point",
        type=point,
        action="append",
        default=[],
        metavar="X,Y[,0|1]",
        help="a click, 1 (default) on the object, 0 beside it; repeated points are one prompt",
    )
    parser.add_argument(
        "--box",
        type=box,
        action="append",
        default=[],
        metavar="X0,Y0,X1,Y1",
        help="each box is a prompt unless points are given with it; clipped to the photo",
    )
    parser.add_argument(
        "--mask-input",
        type=path,
        metavar="FILE.npy",
        help="logits of an earlier prediction as a prompt, [256, 256] or [1, 256, 256]",
    )
    parser.add_argument("--single-mask", action="store_true", help="the single mask, token 0")
    parser.add_output(
        "--out",
        kind="folder",
        required=True,
        metavar="DIR",
        help="where overlay.png and a mask_N.png of each prompt are written, or classes.png, or "
        "detections.png",
    )
    parser.add_output("--npz", kind="file", metavar="FILE", help="masks, logits and IoU as arrays")
    parser.add_output(
        "--rle",
        kind="file",
        metavar="FILE",
        help="the masks as run-lengths, JSON as in SA-1B or COCO",
    )
    parser.add_argument(
        "--chunk-size",
        type=positive,
        default=32,
        metavar="N",
        help="prompts per chunk: affects memory, not results (default 32)",
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    stage = stage_of_file(arguments.weights)
    place = stage.predict
    if place is None:
        _run_prompts(arguments)
        return
    without_effect = [name for name in _PROMPT_OPTIONS if name not in stage.predict_options]
    given = [name for name in without_effect if getattr(arguments, name) not in (None, [], False)]
    if given:
        option = given[0].replace("_", "-")
        raise UserError(f"--{option} has no effect with {arguments.weights}, which takes an image")
    if not arguments.image.is_file():
        raise UserError(f"--image: no such file: {arguments.image}")
    more = {name: getattr(arguments, name) for name in stage.predict_options}
    imported(place)(arguments.weights, arguments.image, arguments.out, **more)


def _run_prompts(arguments: argparse.Namespace) -> None:
    if not arguments.point and not arguments.box and arguments.mask_input is None:
        raise UserError("predict: no prompt; give --point X,Y or --box X0,Y0,X1,Y1")
    check_model(arguments)
    if not arguments.image.is_file():
        raise UserError(f"--image: no such file: {arguments.image}")
    if arguments.mask_input is not None and not arguments.mask_input.is_file():
        raise UserError(f"--mask-input: no such file: {arguments.mask_input}")
    if arguments.point and len(arguments.box) > 1:
        raise UserError("--point with several --box: points belong to one prompt, give one box")
    from efficientsam_pl.commands import predict

    predict.run(
        predict.PredictOptions(
            weights=arguments.weights,
            model=arguments.model,
            image=arguments.image,
            points=tuple(arguments.point),
            boxes=tuple(arguments.box),
            mask_input=arguments.mask_input,
            single_mask=arguments.single_mask,
            out=arguments.out,
            npz=arguments.npz,
            rle=arguments.rle,
            chunk_size=arguments.chunk_size,
        )
    )
