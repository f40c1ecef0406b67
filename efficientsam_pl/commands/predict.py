"""`efficientsam predict`: predict masks of an image from points and boxes."""

import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from efficientsam_pl.data.images.files import read_image_file
from efficientsam_pl.data.images.stated import exif_line
from efficientsam_pl.errors import UserError
from efficientsam_pl.inference.hub import load_model
from efficientsam_pl.inference.predictor import CHUNK_SIZE, Predictor, PromptPrediction
from efficientsam_pl.inference.prompt_inputs import check_points, clip_boxes
from efficientsam_pl.plural import counted
from efficientsam_pl.rle import Rle, area, box_xyxy, encode
from efficientsam_pl.storage.atomic import atomic_write_bytes, atomic_write_local
from efficientsam_pl.structures import Label
from efficientsam_pl.visualization.overlay import DrawnPrompt, mask_image, overlay_runs
from efficientsam_pl.visualization.palette import mask_colour

_RLE_VERSION = 1
_MAX_LABELS = 100  # more would cover the overlay, and placing them takes longer than predicting


@dataclass(frozen=True)
class PredictOptions:
    """Arguments of the command; coordinates in image pixels."""

    weights: str
    model: str | None
    image: Path
    points: tuple[tuple[float, float, int], ...]
    boxes: tuple[tuple[float, float, float, float], ...]
    mask_input: Path | None
    single_mask: bool
    out: Path
    npz: Path | None
    rle: Path | None = None
    chunk_size: int = CHUNK_SIZE


@dataclass(frozen=True)
class _BestMask:
    """The mask of a prompt with the highest predicted IoU."""

    rle: Rle
    iou: float


def run(options: PredictOptions) -> None:
    """Write `overlay.png`, a PNG of each prompt's best mask, and other files if requested.

    Masks are held as run-lengths; only one prompt's are at the image's size.
    """
    file = read_image_file(options.image)
    image, image_hw = file.pixels, (file.pixels.shape[0], file.pixels.shape[1])
    check_points([point[:2] for point in options.points], image_hw)
    clipped = clip_boxes(options.boxes, image_hw)
    options = replace(options, boxes=clipped.boxes)
    arguments = _arguments(options)
    embedded = Predictor(load_model(options.model, options.weights)).embed(image)
    predictions = embedded.predict_each(
        **arguments,
        single_mask=options.single_mask,
        chunk_size=options.chunk_size,
    )
    rotated = exif_line({} if file.turn is None else {file.turn: 1})
    for line in (rotated, clipped.message() if clipped.count else None):
        if line is not None:
            print(line)
    if options.npz is not None:
        count = max(len(values) for values in arguments.values())
        predictions = _with_arrays(predictions, options.npz, count)
    best = list(_write_masks(predictions, options.out))
    labels = [f"predicted IoU {mask.iou:.2f}" for mask in best[:_MAX_LABELS]]
    colours = [mask_colour(index) for index in range(len(best))]
    rles = [mask.rle for mask in best]
    canvas = overlay_runs(image, rles, colours, _drawn_prompts(options), labels)
    canvas.save(options.out / "overlay.png")
    if options.rle is not None:
        record = _rle_file(options, image_hw, best)
        atomic_write_bytes(options.rle, json.dumps(record, allow_nan=False).encode() + b"\n")
    if len(best) > _MAX_LABELS:
        print(f"overlay.png: labels of the first {_MAX_LABELS} of {len(best)} masks")
    print(f"-> {options.out / 'overlay.png'}")


def _write_masks(predictions: Iterator[PromptPrediction], out: Path) -> Iterator[_BestMask]:
    """Write and print each prompt's best mask; yield it as run-lengths."""
    for index, prediction in enumerate(predictions):
        mask = prediction.best_mask().cpu().numpy()
        out.mkdir(parents=True, exist_ok=True)  # not before a prompt can be predicted
        mask_image(mask).save(out / f"mask_{index}.png")
        best = _BestMask(encode(mask), float(prediction.iou.max()))
        pixels = counted(area(best.rle), "pixel")
        print(f"mask {index}: predicted IoU {best.iou:.3f}, {pixels}")
        yield best


def _with_arrays(
    predictions: Iterator[PromptPrediction], path: Path, count: int
) -> Iterator[PromptPrediction]:
    """Write the arrays of all prompts while they pass, masks prompt by prompt.

    The low-resolution logits of all prompts are in memory: 0.75 MiB per prompt.
    """
    first = next(predictions)  # no file is left where no prompt can be predicted
    arrays: dict[str, list[np.ndarray]] = {"low_res_logits": [], "iou": []}
    with (
        atomic_write_local(path) as target,
        zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        with archive.open("masks.npy", "w", force_zip64=True) as file:
            shape = (count, len(first.iou), *first.resize.image_hw)
            header = {"descr": np.dtype(bool).str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for prediction in chain([first], predictions):
                file.write(prediction.masks().cpu().numpy().tobytes())
                arrays["low_res_logits"].append(prediction.low_res_logits.cpu().numpy())
                arrays["iou"].append(prediction.iou.cpu().numpy())
                yield prediction
        for name, values in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.stack(values))


def _rle_file(
    options: PredictOptions, image_hw: tuple[int, int], best: list[_BestMask]
) -> dict[str, Any]:
    """Make SA-1B's record of an image, with the prompt of each mask."""
    height, width = image_hw
    annotations = []
    for index, mask in enumerate(best):
        x0, y0, x1, y1 = box_xyxy(mask.rle)
        annotations.append(
            {
                "id": index,
                "segmentation": mask.rle,
                "area": area(mask.rle),
                "bbox": [x0, y0, max(x1 - x0, 0.0), max(y1 - y0, 0.0)],
                "predicted_iou": mask.iou,
                "prompt": _prompt_record(options, index),
            }
        )
    image = {"file_name": options.image.name, "height": height, "width": width}
    return {"version": _RLE_VERSION, "image": image, "annotations": annotations}


def _prompt_record(options: PredictOptions, index: int) -> dict[str, Any]:
    record: dict[str, Any] = {}
    if options.points:
        record["point_coords"] = [[x, y] for x, y, _ in options.points]
        record["point_labels"] = [label for _, _, label in options.points]
    if options.boxes:
        record["box"] = list(options.boxes[index])
    if options.mask_input is not None:
        record["mask_input"] = str(options.mask_input)
    return record


def _arguments(options: PredictOptions) -> dict[str, np.ndarray]:
    """Combine all points to a single prompt; each box is a prompt unless points are given too."""
    arguments = {}
    if options.points:
        if len(options.boxes) > 1:
            raise UserError("--point with several --box: points belong to one prompt, give one box")
        arguments["points"] = np.array([[(x, y) for x, y, _ in options.points]])
        arguments["labels"] = np.array([[label for _, _, label in options.points]])
    if options.boxes:
        arguments["boxes"] = np.array(options.boxes)
    if options.mask_input is not None:
        arguments["mask_logits"] = _read_logits(options.mask_input)
    return arguments


def _read_logits(path: Path) -> np.ndarray:
    """Read the logits of one mask, [1, 256, 256]."""
    try:
        logits: np.ndarray = np.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"--mask-input: {path} cannot be read as .npy") from error
    if not isinstance(logits, np.ndarray) or logits.dtype.kind not in "fiu":
        raise UserError(f"--mask-input: {path} must be a .npy file of numbers")
    if logits.ndim == 2:
        logits = logits[None]
    if logits.ndim != 3 or len(logits) != 1:
        raise UserError(
            f"--mask-input: {path} must hold [256, 256] logits, not {list(logits.shape)}"
        )
    return logits


def _drawn_prompts(options: PredictOptions) -> list[DrawnPrompt]:
    clicks = [p for p in options.points if p[2] in (Label.POSITIVE, Label.NEGATIVE)]
    points = tuple((x, y) for x, y, _ in clicks)
    labels = tuple(label for _, _, label in clicks)
    if options.points:
        return [DrawnPrompt(points, labels, options.boxes[0] if options.boxes else None)]
    return [DrawnPrompt((), (), box) for box in options.boxes]
