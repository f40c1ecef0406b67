"""Position encodings of a token grid: learned, or MAE's fixed sines.

Axes: n tokens of the grid (row-major), r selected tokens, b images, c channels.
"""

from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int64
from torch import Tensor, nn


def grid_positions(kind: Literal["learned", "fixed"], grid: int, width: int) -> nn.Parameter:
    """Create the position parameter [1, n, c]: random and trained, or fixed sines."""
    if kind == "fixed":
        return nn.Parameter(sine_positions(grid, width), requires_grad=False)
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(1, grid**2, width), std=0.02))


def sine_positions(grid: int, width: int) -> Float[Tensor, "1 n c"]:
    """Compute MAE's fixed positions: sine and cosine of column and row, half of the width each."""
    frequency = 1 / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angle = torch.arange(grid, dtype=torch.float64)[:, None] * frequency
    axis = torch.cat([angle.sin(), angle.cos()], dim=-1)
    column = axis[None].expand(grid, -1, -1)
    row = axis[:, None].expand(-1, grid, -1)
    return torch.cat([column, row], dim=-1).reshape(1, grid * grid, width).float()


def positions_at(
    positions: Float[Tensor, "1 n c"], index: Int64[Tensor, "b r"]
) -> Float[Tensor, "b r c"]:
    """Gather the positions of the tokens with these indices."""
    # the gradient of F.embedding is reduced in parallel, that of positions[0, index] serially
    return F.embedding(index, positions[0])
