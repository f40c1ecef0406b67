"""Exact ROI averages: means of a feature map over the cells of a rectangle, without sampling.

The map is interpolated bilinearly between its values; a value is located at the centre of its
cell, at a half-integer, and the map is constant beyond the outermost centres. This is RoIAlign
(He et al. 2017, Mask R-CNN, section 3; `aligned` as in Detectron2) with infinitely many samples a
cell. The interpolant is a product of hat functions along y and x, so a mean over a
rectangle is a product of two matrices of integrals of hats.
"""

import torch
from jaxtyping import Float32, Float64, Num
from torch import Tensor


def cell_weights(start: float, end: float, cells: int, size: int) -> Float64[Tensor, "cells size"]:
    """Return the weight of each of `size` values in the mean over each of `cells` equal parts.

    Args:
        start: Start of the first part, in the map's cells.
        end: End of the last part, beyond `start`.
        cells: Number of parts.
        size: Number of values, with centres at 0.5, 1.5, ...
    """
    edges = start + (end - start) / cells * torch.arange(cells + 1, dtype=torch.float64)
    inner = edges.clamp(0.5, size - 0.5)
    centres = torch.arange(size, dtype=torch.float64) + 0.5
    weights = _hat_integral(inner[:, None] - centres).diff(dim=0)
    # where the interpolant stays constant, its outermost values have all the weight
    weights[:, 0] += edges.clamp(max=0.5).diff()
    weights[:, -1] += edges.clamp(min=size - 0.5).diff()
    return weights * cells / (end - start)


def roi_average(
    features: Num[Tensor, "rows cols c"], box: tuple[float, float, float, float], grid: int
) -> Float32[Tensor, "{grid} {grid} c"]:
    """Average a map over a grid of equal cells that covers a rectangle.

    Args:
        features: The feature map.
        box: Left, top, right, bottom, in the map's cells.
        grid: Cells a side.
    """
    left, top, right, bottom = box
    down, rows = _weighing(cell_weights(top, bottom, grid, features.shape[0]))
    across, cols = _weighing(cell_weights(left, right, grid, features.shape[1]))
    near = torch.einsum("yr,rkc->ykc", down, features[rows, cols].float())
    return torch.einsum("xk,ykc->yxc", across, near)


def _weighing(
    weights: Float64[Tensor, "cells size"],
) -> tuple[Float32[Tensor, "cells near"], slice]:
    """Return the non-zero weights, and the slice of their values."""
    used = weights.any(0).nonzero()[:, 0]
    near = slice(int(used[0]), int(used[-1]) + 1)
    return weights[:, near].float(), near


def _hat_integral(t: Float64[Tensor, "*any"]) -> Float64[Tensor, "*any"]:
    """Integrate from minus infinity to t the hat function that is 1 at 0 and 0 beyond -1 and 1."""
    near = t.clamp(-1, 1)
    return torch.where(near < 0, (near + 1) ** 2 / 2, 1 - (1 - near) ** 2 / 2)
