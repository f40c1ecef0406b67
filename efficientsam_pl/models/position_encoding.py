"""Positions that tokens of a grid are told by: learned, or MAE's sines.

Axes: n tokens of the grid (row-major), r of them chosen, b images, c channels.
"""

from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int64
from torch import Tensor, nn


def grid_positions(kind: Literal["learned", "fixed"], grid: int, width: int) -> nn.Parameter:
    """A parameter [1, n, c]: random and learning, or sines that stay."""
    if kind == "fixed":
        return nn.Parameter(sine_positions(grid, width), requires_grad=False)
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(1, grid**2, width), std=0.02))


def sine_positions(grid: int, width: int) -> Float[Tensor, "1 n c"]:
    """MAE's fixed positions: sine and cosine of row and column, half of the width each."""
    frequency = 1 / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angle = torch.arange(grid, dtype=torch.float64)[:, None] * frequency
    axis = torch.cat([angle.sin(), angle.cos()], dim=-1)
    column = axis[None].expand(grid, -1, -1)
    row = axis[:, None].expand(-1, grid, -1)
    return torch.cat([column, row], dim=-1).reshape(1, grid * grid, width).float()


def positions_at(
    positions: Float[Tensor, "1 n c"], index: Int64[Tensor, "b r"]
) -> Float[Tensor, "b r c"]:
    """The positions of the tokens with these numbers."""
    # a look-up's gradient is summed in parallel, that of positions[0, index] one by one
    return F.embedding(index, positions[0])
