"""Sine positions of a map's places, as DETR and Mask2Former have them."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

_TEMPERATURE = 10_000.0
_EPS = 1e-6


def sine_positions(rows: int, columns: int, width: int, like: Tensor) -> Float[Tensor, "n {width}"]:
    """Encode each place of a grid, row-major: half of the channels its row, half its column.

    Places are scaled to (0, 2 pi] over the map.
    """
    half = width // 2
    channel = torch.arange(half, device=like.device)
    wavelength = _TEMPERATURE ** (2 * (channel // 2) / half)
    codes = []
    for count in (rows, columns):
        place = torch.arange(1, count + 1, device=like.device, dtype=torch.float32)
        angle = (place / (count + _EPS) * 2 * math.pi)[:, None] / wavelength
        codes.append(torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], dim=-1).flatten(1))
    down, across = codes
    down = down[:, None].expand(-1, columns, -1)
    across = across[None].expand(rows, -1, -1)
    return torch.cat([down, across], dim=-1).flatten(0, 1)
