"""Which masks of a photo are used, and what is read off their runs before any is decoded."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from efficientsam_pl.data.config import MaskSelectionConfig
from efficientsam_pl.data.schema import Annotation, Record
from efficientsam_pl.draws import uniform
from efficientsam_pl.rle import Rle, area, box_xyxy, foreground_points


def select_masks(record: Record, config: MaskSelectionConfig, key: int) -> list[Rle]:
    """Up to `masks_per_image` masks of fitting size, uniformly at random; crowds never."""
    photo = record.width * record.height
    fitting = [
        a.rle
        for a in record.annotations
        if not a.crowd and a.area > 0 and config.min_area <= a.area / photo <= config.max_area
    ]
    if len(fitting) <= config.masks_per_image:
        return fitting
    order = uniform(torch.tensor(key), len(fitting), "select").argsort(stable=True)
    return [fitting[i] for i in order[: config.masks_per_image].tolist()]


def scorable(annotations: Sequence[Annotation]) -> list[Rle]:
    """The masks that an evaluation scores: no crowd, not empty."""
    return [a.rle for a in annotations if not a.crowd and a.area > 0]


def random_clicks(rles: Sequence[Rle], clicks: int, key: int) -> Float[Tensor, "q p 2"]:
    """Uniform random foreground pixels of each mask at image precision, as (x, y)."""
    points = np.zeros((len(rles), clicks, 2), dtype=np.int64)
    for index, rle in enumerate(rles):
        share = uniform(torch.tensor(key), clicks, f"clicks-{index}").double().numpy()
        points[index] = foreground_points(rle, (share * area(rle)).astype(np.int64))
    return torch.from_numpy(points).float()


def tight_boxes(rles: Sequence[Rle]) -> Float[Tensor, "q 4"]:
    """Corners through the outermost foreground pixels of each mask."""
    return torch.tensor([box_xyxy(rle) for rle in rles], dtype=torch.float32).reshape(-1, 4)
