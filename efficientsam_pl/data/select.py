"""Which masks of a photo are used, and what is read off their runs before any is decoded."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from efficientsam_pl.data.config import MaskSelectionConfig
from efficientsam_pl.data.schema import Annotation, Record
from efficientsam_pl.draws import uniform
from efficientsam_pl.rle import Rle, boxes_xyxy, foreground_points


def select_masks(record: Record, config: MaskSelectionConfig, key: int) -> list[Rle]:
    """Up to `masks_per_image` masks of fitting size and score, uniformly at random; no crowds."""
    photo = record.width * record.height
    fitting = [
        a.rle
        for a in record.annotations
        if not a.crowd
        and a.area > 0
        and config.min_area <= a.area / photo <= config.max_area
        and (a.stability is None or a.stability >= config.min_stability)
        and (a.predicted_iou is None or a.predicted_iou >= config.min_predicted_iou)
    ]
    if len(fitting) <= config.masks_per_image:
        return fitting
    order = uniform(torch.tensor(key), len(fitting), "select").argsort(stable=True)
    return [fitting[i] for i in order[: config.masks_per_image].tolist()]


def scorable(annotations: Sequence[Annotation]) -> list[Rle]:
    """The masks that an evaluation scores: no crowd, not empty."""
    return [a.rle for a in annotations if not a.crowd and a.area > 0]


def random_clicks(
    runs: Sequence[Int[np.ndarray, "_"]], height: int, clicks: int, key: int
) -> Float[Tensor, "q p 2"]:
    """Uniform random foreground pixels of each mask at image precision, as (x, y).

    Args:
        runs: Run lengths of each mask, none of them empty.
        height: Of the photo, pixels.
        clicks: Points a mask.
        key: Of the sample's draws.
    """
    shares = uniform(torch.tensor(key), len(runs) * clicks, "clicks").double().numpy()
    points = np.zeros((len(runs), clicks, 2), dtype=np.float32)
    for index, (own, share) in enumerate(zip(runs, shares.reshape(-1, clicks), strict=True)):
        ranks = (share * own[1::2].sum()).astype(np.int64)
        points[index] = foreground_points(own, height, ranks)
    return torch.from_numpy(points)


def tight_boxes(rles: Sequence[Rle]) -> Float[Tensor, "q 4"]:
    """Corners through the outermost foreground pixels of each mask."""
    return torch.from_numpy(boxes_xyxy(rles)).float()
