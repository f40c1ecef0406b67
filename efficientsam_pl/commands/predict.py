"""`efficientsam predict`: predict masks of an image from points and boxes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from efficientsam_pl.data.images.files import read_image_file
from efficientsam_pl.data.images.stated import exif_line
from efficientsam_pl.errors import UserError
from efficientsam_pl.inference.hub import load_model
from efficientsam_pl.inference.predictor import ImagePrediction, Predictor, check_coordinates
from efficientsam_pl.plural import counted
from efficientsam_pl.structures import Label
from efficientsam_pl.visualization.overlay import DrawnPrompt, mask_image, overlay


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


def run(options: PredictOptions) -> ImagePrediction:
    """Write `overlay.png`, a PNG of each prompt's best mask, and the raw arrays if requested."""
    read = read_image_file(options.image)
    image, rotated = read.pixels, exif_line({} if read.turn is None else {read.turn: 1})
    image_hw = (image.shape[0], image.shape[1])
    check_coordinates([point[:2] for point in options.points], options.boxes, image_hw)
    prompts = _drawn_prompts(options)
    arguments = _arguments(options)
    model = load_model(options.model, options.weights)
    embedded = Predictor(model).embed(image)
    prediction = embedded.predict(**arguments, single_mask=options.single_mask)
    best, iou = prediction.best().numpy(), prediction.iou.amax(dim=1).tolist()
    options.out.mkdir(parents=True, exist_ok=True)
    overlay(image, best, prompts, iou, iou_name="predicted IoU").save(options.out / "overlay.png")
    for index, mask in enumerate(best):
        mask_image(mask).save(options.out / f"mask_{index}.png")
    if options.npz is not None:
        options.npz.parent.mkdir(parents=True, exist_ok=True)
        with options.npz.open("wb") as file:
            np.savez_compressed(
                file,
                masks=prediction.masks.numpy(),
                low_res_logits=prediction.low_res_logits.numpy(),
                iou=prediction.iou.numpy(),
            )
    if rotated is not None:
        print(rotated)
    for index, value in enumerate(iou):
        print(
            f"mask {index}: predicted IoU {value:.3f}, {counted(int(best[index].sum()), 'pixel')}"
        )
    print(f"-> {options.out / 'overlay.png'}")
    return prediction


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
        arguments["mask_logits"] = _read_logits(options.mask_input)[None]
    return arguments


def _read_logits(path: Path) -> np.ndarray:
    try:
        logits: np.ndarray = np.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"--mask-input: {path} cannot be read as .npy") from error
    if not isinstance(logits, np.ndarray) or logits.dtype.kind not in "fiu":
        raise UserError(f"--mask-input: {path} must be a .npy file of numbers")
    if logits.ndim != 2:
        raise UserError(f"--mask-input: {path} must hold [256, 256] logits, not {logits.shape}")
    return logits


def _drawn_prompts(options: PredictOptions) -> list[DrawnPrompt]:
    clicks = [p for p in options.points if p[2] in (Label.POSITIVE, Label.NEGATIVE)]
    points = tuple((x, y) for x, y, _ in clicks)
    labels = tuple(label for _, _, label in clicks)
    if options.points:
        return [DrawnPrompt(points, labels, options.boxes[0] if options.boxes else None)]
    return [DrawnPrompt((), (), box) for box in options.boxes]
