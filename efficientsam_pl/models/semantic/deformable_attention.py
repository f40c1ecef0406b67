"""Multi-scale deformable attention (Zhu et al. 2021) without a kernel of its own.

Every query samples a few places on every level, bilinearly, and adds them up with its own weights.
Sampling is `grid_sample`, which torch.compile and CUDA graphs know, one call a level.

Axes: b images, n queries, m tokens of all levels, c channels, a heads, l levels, p points.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float
from torch import Tensor, nn

Grid = tuple[int, int]  # rows and columns of a level


class DeformableAttention(nn.Module):
    """Attention over sampled places; names and initialisation are Deformable DETR's."""

    def __init__(self, width: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(width, heads * levels * points * 2)
        self.attention_weights = nn.Linear(width, heads * levels * points)
        self.value_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Begin with each head looking in a direction of its own, a point further for each."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angles = torch.arange(self.heads) * (2 * math.pi / self.heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.points + 1)[:, None]
        offsets = (directions[:, None, None] * steps).expand(-1, self.levels, -1, -1)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Float[Tensor, "b n c"],
        reference_unit: Float[Tensor, "n 2"],
        tokens: Float[Tensor, "b m c"],
        grids: Sequence[Grid],
    ) -> Float[Tensor, "b n c"]:
        """Sample around each query's reference.

        Args:
            query: Decide where to look and how much each place counts.
            reference_unit: (x, y) of every query, in [0, 1] over the image.
            tokens: All levels, one after the other, row-major.
            grids: Rows and columns of each level.
        """
        b, n, _ = query.shape
        shape = (b, n, self.heads, self.levels, self.points)
        offsets = self.sampling_offsets(query).view(*shape, 2)  # in tokens of the level
        weights = self.attention_weights(query).view(b, n, self.heads, -1).softmax(-1).view(shape)
        values = self.value_proj(tokens).transpose(1, 2).unflatten(1, (self.heads, -1))
        parts = values.split([rows * columns for rows, columns in grids], dim=-1)
        attended = []
        for level, ((rows, columns), value) in enumerate(zip(grids, parts, strict=True)):
            # a tensor of both sizes would be a copy from the host
            dx, dy = offsets[:, :, :, level].unbind(-1)
            move = torch.stack([dx / columns, dy / rows], dim=-1)
            places = reference_unit[:, None, None] + move
            grid = (2 * places - 1).transpose(1, 2).flatten(0, 1)  # b * a, n, p, 2
            level_map = value.reshape(b * self.heads, -1, rows, columns)
            sampled = F.grid_sample(level_map, grid, padding_mode="zeros", align_corners=False)
            weight = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]
            attended.append((sampled * weight).sum(-1))  # b * a, c / a, n
        joined = torch.stack(attended).sum(0).view(b, -1, n).transpose(1, 2)
        output: Tensor = self.output_proj(joined)
        return output


def reference_points(grids: Sequence[Grid], like: Tensor) -> Float[Tensor, "m 2"]:
    """Return the centres (x, y) of all levels' tokens, in [0, 1] over the image."""
    levels = []
    for rows, columns in grids:
        y = (torch.arange(rows, device=like.device, dtype=like.dtype) + 0.5) / rows
        x = (torch.arange(columns, device=like.device, dtype=like.dtype) + 0.5) / columns
        levels.append(torch.stack(torch.broadcast_tensors(x, y[:, None]), -1).flatten(0, 1))
    return torch.cat(levels)
