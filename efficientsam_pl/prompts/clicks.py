"""Clicks in masks, drawn or chosen on the device for a whole batch.

Masks are grids of cells over the model's square, and a click is the centre of a cell in model
pixels. Nothing waits for the device, and no mask is special: an empty one gives a point too, which
the caller leaves out.

Axes: b images, q masks an image, h w cells.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from efficientsam_pl.structures import Label


def uniform_click(
    region: Bool[Tensor, "*mask h w"], share: Float[Tensor, "*mask"], side: int
) -> Float[Tensor, "*mask 2"]:
    """Click the cell `share` of the way through the region's cells, in row-major order.

    Args:
        region: Cells that the click may fall on.
        share: In [0, 1); uniform numbers make uniform clicks.
        side: The model's square in pixels.

    Returns:
        (x, y) in model pixels; that of the first cell for an empty region.
    """
    return _middle(_drawn_cell(region, share), region, side)


def centre_click(masks: Bool[Tensor, "*mask h w"], side: int) -> Float[Tensor, "*mask 2"]:
    """Click the mask's cell farthest from the background; ties take the first in row-major order.

    Everything beyond the square's border is background.

    Args:
        masks: Grids of cells.
        side: The model's square in pixels.

    Returns:
        (x, y) in model pixels; that of the first cell for an empty mask.

    Source:
        SAM's evaluation clicks the point farthest from the mask's edge.
    """
    away = squared_distance(masks).flatten(-2)
    cells = away.shape[-1]
    # argmax alone may take any of several on a GPU
    ordered = away.long() * cells - torch.arange(cells, device=away.device)
    return _middle(ordered.argmax(-1), masks, side)


def squared_distance(masks: Bool[Tensor, "*mask h w"]) -> Float[Tensor, "*mask h w"]:
    """Squared distance of each cell to the nearest background or to the border, in cells.

    Exact: the nearest in every column, then the best of the columns (Felzenszwalb and Huttenlocher
    2012: Distance transforms of sampled functions), which is one pass a column.
    """
    width = masks.shape[-1]
    vertical = _to_nearest(masks).square()
    column = torch.arange(width, device=masks.device)
    to_border = torch.minimum(column + 1, width - column).float().square()
    nearest = torch.minimum(vertical, to_border)
    for x in range(width):
        nearest = torch.minimum(nearest, vertical[..., x : x + 1] + (column - x).float().square())
    return nearest


def sample_point_from_errors(
    truth: Bool[Tensor, "b q h w"],
    mask_logits: Float[Tensor, "b q h w"],
    share: Float[Tensor, "b q"],
    side: int,
) -> tuple[Float[Tensor, "b q 2"], Int64[Tensor, "b q"]]:
    """Draw a click uniformly from the cells that are predicted wrong (SAM, appendix A).

    The frame's padding is background: a mask that covers it is wrong there, and a negative click
    may fall on it.

    Args:
        truth: The masks.
        mask_logits: Predicted at the masks' resolution; above 0 is mask.
        share: In [0, 1), how far through the errors in row-major order; one draw a mask and round.
        side: The model's square in pixels.

    Returns:
        (x, y) in model pixels and the label: POSITIVE where mask is missing, NEGATIVE where there
        is too much; -1 and PADDING for a perfect prediction.
    """
    wrong = (mask_logits > 0) ^ truth
    cell = _drawn_cell(wrong, share)
    is_mask, is_wrong = (
        masks.flatten(-2).gather(-1, cell[..., None])[..., 0] for masks in (truth, wrong)
    )
    labels = torch.where(is_mask, Label.POSITIVE, Label.NEGATIVE)
    perfect = ~is_wrong  # else a cell is drawn that is wrong
    points = _middle(cell, truth, side)
    return (
        torch.where(perfect[..., None], -1.0, points),
        torch.where(perfect, Label.PADDING, labels),
    )


def _drawn_cell(
    region: Bool[Tensor, "*mask h w"], share: Float[Tensor, "*mask"]
) -> Int64[Tensor, "*mask"]:
    """Draw the row, then the cell in it: only the rows' counts are summed up."""
    so_far = region.sum(-1, dtype=torch.int32).cumsum(-1, dtype=torch.int32)
    count = so_far[..., -1:]
    # float32 may round a share just below 1 up to the whole
    rank = (share[..., None] * count).int().minimum(count - 1)
    row = torch.searchsorted(so_far, rank + 1)
    above = so_far.gather(-1, (row - 1).clamp(min=0)).where(row > 0, 0)
    width = region.shape[-1]
    cells = region.gather(-2, row[..., None].expand(*row.shape, width))[..., 0, :]
    along = cells.cumsum(-1, dtype=torch.int32)
    column = torch.searchsorted(along, rank - above + 1)
    return (row * width + column)[..., 0]


def _to_nearest(masks: Bool[Tensor, "*mask h w"]) -> Float[Tensor, "*mask h w"]:
    """Distance of each cell to the nearest background cell of its column, in cells."""
    height = masks.shape[-2]
    row = torch.arange(height, device=masks.device)[:, None]
    above = torch.where(masks, -1, row).cummax(-2).values
    below = torch.where(masks, height, row).flip(-2).cummin(-2).values.flip(-2)
    return torch.minimum(row - above, below - row).float()


def _middle(
    cell: Int64[Tensor, "*mask"], masks: Bool[Tensor, "*mask h w"], side: int
) -> Float[Tensor, "*mask 2"]:
    """Centre of a cell, numbered in row-major order, in model pixels."""
    height, width = masks.shape[-2:]
    x, y = cell % width, cell // width
    return torch.stack([_model_px(x, width, side), _model_px(y, height, side)], dim=-1)


def _model_px(cell: Int64[Tensor, "*mask"], cells: int, side: int) -> Float[Tensor, "*mask"]:
    return (cell + 0.5) * (side / cells) - 0.5
