"""Sample masks of an image, with boxes and clicks from their runs, before any is decoded."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from efficientsam_pl.data.config import MaskSelectionConfig
from efficientsam_pl.data.schema import Annotation, CorruptSampleError, Record
from efficientsam_pl.data.transforms import Crop
from efficientsam_pl.keyed_random import uniform_of
from efficientsam_pl.mask_crop import crop_runs
from efficientsam_pl.rle import (
    Rle,
    boxes_xyxy,
    foreground_points,
    foreground_runs,
    from_runs,
    run_lengths,
)


def select_masks(record: Record, config: MaskSelectionConfig, key: int) -> list[Rle]:
    """Sample up to `masks_per_image` masks of fitting size and score, uniformly; no crowds."""
    image_area = record.width * record.height
    fitting = [
        a.rle
        for a in record.annotations
        if not a.crowd
        and a.area > 0
        and config.min_area <= a.area / image_area <= config.max_area
        and (a.stability is None or a.stability >= config.min_stability)
        and (a.predicted_iou is None or a.predicted_iou >= config.min_predicted_iou)
    ]
    if len(fitting) <= config.masks_per_image:
        return fitting
    order = uniform_of(key, len(fitting), "select").argsort(kind="stable")
    return [fitting[i] for i in order[: config.masks_per_image].tolist()]


def crop_record(record: Record, crop: Crop, min_visible: float) -> Record:
    """Crop a record's masks to a rectangle of its image.

    Areas are counted inside the rectangle. Masks without a pixel there, or with less than
    `min_visible` of their pixels, are left out.

    Raises:
        CorruptSampleError: Run-lengths that cannot be read.
    """
    whole = _decoded_runs([annotation.rle for annotation in record.annotations])
    size = crop.height, crop.width
    inside = crop_runs(whole, record.height, (crop.top, crop.left), size)
    annotations = []
    for annotation, before, runs in zip(record.annotations, whole, inside, strict=True):
        visible = int(runs[1::2].sum())
        if visible and visible >= min_visible * int(before[1::2].sum()):
            rle = from_runs(runs, *size)
            annotations.append(annotation._replace(rle=rle, area=visible))
    return Record(crop.width, crop.height, tuple(annotations), record.original_hw)


def evaluable_masks(annotations: Sequence[Annotation]) -> list[Rle]:
    """Return the masks that an evaluation scores: no crowd, not empty."""
    return [a.rle for a in annotations if not a.crowd and a.area > 0]


def nonempty_masks(rles: Sequence[Rle]) -> tuple[list[Rle], list[Int[np.ndarray, "_"]]]:
    """Return the masks that have a pixel, whatever area their file states, and their run lengths.

    Raises:
        CorruptSampleError: Run-lengths that cannot be read.
    """
    runs = _decoded_runs(rles)
    real = [i for i, counts in enumerate(runs) if counts[1::2].any()]
    return [rles[i] for i in real], [runs[i] for i in real]


def random_clicks(
    runs: Sequence[Int[np.ndarray, "_"]], height: int, clicks: int, key: int
) -> Float[Tensor, "q p 2"]:
    """Draw uniform random foreground pixels of each mask at image precision, as (x, y).

    Args:
        runs: Run lengths of each mask, none of them empty.
        height: Height of the image, pixels.
        clicks: Points a mask.
        key: Key of the sample's random draws.
    """
    if not runs:
        return torch.zeros(0, clicks, 2)
    fractions = uniform_of(key, len(runs) * clicks, "clicks").astype(np.float64)
    whole = foreground_runs(runs)
    areas = np.bincount(whole.mask, whole.end - whole.begin)
    ranks = (fractions.reshape(-1, clicks) * areas[:, None]).astype(np.int64)
    return torch.from_numpy(foreground_points(whole, height, ranks)).float()


def _decoded_runs(rles: Sequence[Rle]) -> list[Int[np.ndarray, "_"]]:
    try:
        return run_lengths(rles)
    except ValueError as error:
        raise CorruptSampleError("bad mask", str(error)) from error


def tight_boxes(rles: Sequence[Rle]) -> Float[Tensor, "q 4"]:
    """Return corners through the outermost foreground pixels of each mask."""
    return torch.from_numpy(boxes_xyxy(rles)).float()
