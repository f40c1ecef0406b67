"""Self-attention with decomposed relative positions (ViTDet; MViTv2).

Axes: b grids, h heads, n tokens = gh * gw, d channels of a head, c channels.
"""

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float
from torch import Tensor, nn

from efficientsam_pl.models.layers import SelfAttention


class RelativeAttention(SelfAttention):
    """Attention on a grid of tokens, with learned terms of their distances in y and x.

    The term of a query q and a key at a distance of (dy, dx) is q . rel_pos_h[dy] + q .
    rel_pos_w[dx], with q as it comes from the projection, before it is scaled. Both tables begin at
    zero. detectron2's names.
    """

    def __init__(self, width: int, heads: int, side: int) -> None:
        """Build the layer.

        Args:
            width: Channels.
            heads: Attention heads.
            side: Side of the grid, in tokens, that the tables are for.
        """
        super().__init__(width, heads)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, width // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, width // heads))

    def forward(self, x: Float[Tensor, "b gh gw c"]) -> Float[Tensor, "b gh gw c"]:
        """Attend from every token to all of them."""
        b, rows, columns, c = x.shape
        qkv = self.qkv(x).reshape(b, rows * columns, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self._with_terms(q, k, rows, columns)
        if self.fused_attn:
            attended = F.scaled_dot_product_attention(q, k, v, scale=1.0)
        else:
            attended = (q @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        out: Tensor = self.proj(attended.transpose(1, 2).reshape(b, rows, columns, c))
        return out

    def _with_terms(
        self, q: Float[Tensor, "b h n d"], k: Float[Tensor, "b h n d"], rows: int, columns: int
    ) -> tuple[Float[Tensor, "b h n e"], Float[Tensor, "b h n e"]]:
        """Lengthen queries by their terms of every row and column, and keys by one-hot places.

        Their product is the scaled one and both terms, so that attention needs no matrix of n x n.
        """
        grid = q.unflatten(2, (rows, columns))
        vertical = distances(self.rel_pos_h, rows).to(q.dtype)
        horizontal = distances(self.rel_pos_w, columns).to(q.dtype)
        of_rows = torch.einsum("bhyxd,yrd->bhyxr", grid, vertical)
        of_columns = torch.einsum("bhyxd,xsd->bhyxs", grid, horizontal)
        scaled = grid * q.shape[-1] ** -0.5
        queries = torch.cat([scaled, of_rows, of_columns], dim=-1).flatten(2, 3)
        row = torch.eye(rows, dtype=k.dtype, device=k.device)[:, None].expand(-1, columns, -1)
        column = torch.eye(columns, dtype=k.dtype, device=k.device).expand(rows, -1, -1)
        place = torch.cat([row, column], dim=-1).flatten(0, 1)
        return queries, torch.cat([k, place.expand(*k.shape[:2], -1, -1)], dim=-1)


def distances(table: Float[Tensor, "t d"], side: int) -> Float[Tensor, "{side} {side} d"]:
    """Look up the entries of all distances between two places on a line, query first.

    A table of another grid is resized linearly (detectron2).
    """
    length = 2 * side - 1
    if len(table) != length:
        table = F.interpolate(table.float().T[None], size=length, mode="linear")[0].T
    place = torch.arange(side, device=table.device)
    return table[place[:, None] - place + side - 1]
