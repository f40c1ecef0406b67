"""Mask2Former's transformer decoder: queries that attend to where their own masks are.

Axes: b images, q queries, n tokens, c channels, k classes, h w places of stride 4.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float
from torch import Tensor, nn

from efficientsam_pl.models.semantic.config import MaskHeadConfig
from efficientsam_pl.models.semantic.deformable_attention import Grid
from efficientsam_pl.models.semantic.pixel_decoder import PixelFeatures

_LEVELS = 3


class SegmentLogits(NamedTuple):
    """A layer's prediction: each query's class, the last one meaning no object, and its mask."""

    classes: Float[Tensor, "b q k1"]
    masks: Float[Tensor, "b q h w"]


class Attention(nn.Module):
    """Multi-head attention under the names of torch's `MultiheadAttention`.

    Torch's own repeats a mask for every head, in floats.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        query: Float[Tensor, "b q c"],
        key: Float[Tensor, "b n c"],
        value: Float[Tensor, "b n c"],
        attended: Bool[Tensor, "b q n"] | None = None,
    ) -> Float[Tensor, "b q c"]:
        """Attend to the tokens where `attended` is True; None: to all."""
        q, k, v = (
            F.linear(x, weight, bias).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x, weight, bias in zip(
                (query, key, value),
                self.in_proj_weight.chunk(3),
                self.in_proj_bias.chunk(3),
                strict=True,
            )
        )
        mask = None if attended is None else attended[:, None]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        result: Tensor = self.out_proj(out.transpose(1, 2).flatten(2))
        return result


class CrossAttentionLayer(nn.Module):
    """Attention from queries to a map's tokens, and a norm."""

    def __init__(self, config: MaskHeadConfig) -> None:
        super().__init__()
        self.multihead_attn = Attention(config.width, config.heads)
        self.norm = nn.LayerNorm(config.width)

    def forward(
        self,
        queries: Float[Tensor, "b q c"],
        query_positions: Float[Tensor, "q c"],
        values: Float[Tensor, "b n c"],
        positions: Float[Tensor, "n c"],
        attended: Bool[Tensor, "b q n"],
    ) -> Float[Tensor, "b q c"]:
        """Update the queries."""
        keys = values + positions
        update = self.multihead_attn(queries + query_positions, keys, values, attended)
        out: Tensor = self.norm(queries + update)
        return out


class SelfAttentionLayer(nn.Module):
    """Attention among queries, and a norm."""

    def __init__(self, config: MaskHeadConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config.width, config.heads)
        self.norm = nn.LayerNorm(config.width)

    def forward(
        self, queries: Float[Tensor, "b q c"], query_positions: Float[Tensor, "q c"]
    ) -> Float[Tensor, "b q c"]:
        """Update the queries."""
        placed = queries + query_positions
        out: Tensor = self.norm(queries + self.self_attn(placed, placed, queries))
        return out


class FeedForwardLayer(nn.Module):
    """An MLP on each query, and a norm."""

    def __init__(self, config: MaskHeadConfig) -> None:
        super().__init__()
        self.linear1 = nn.Linear(config.width, config.ffn)
        self.linear2 = nn.Linear(config.ffn, config.width)
        self.norm = nn.LayerNorm(config.width)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, queries: Float[Tensor, "b q c"]) -> Float[Tensor, "b q c"]:
        """Update the queries."""
        out: Tensor = self.norm(queries + self.linear2(F.relu(self.linear1(queries))))
        return out


class MaskEmbedding(nn.Module):
    """Three linear layers from a query to the weights of its mask."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(3))

    def forward(self, queries: Float[Tensor, "b q c"]) -> Float[Tensor, "b q c"]:
        """Apply the layers."""
        first, second, last = self.layers
        out: Tensor = last(F.relu(second(F.relu(first(queries)))))
        return out


class MaskTransformerDecoder(nn.Module):
    """Mask2Former's MultiScaleMaskedTransformerDecoder with its names.

    Layer l attends to stride 32, 16 or 8, in turn, where the prediction before it puts the mask;
    a query without any mask there attends everywhere.
    """

    def __init__(self, classes: int, config: MaskHeadConfig) -> None:
        super().__init__()
        layers = range(config.layers)
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttentionLayer(config) for _ in layers
        )
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttentionLayer(config) for _ in layers
        )
        self.transformer_ffn_layers = nn.ModuleList(FeedForwardLayer(config) for _ in layers)
        self.decoder_norm = nn.LayerNorm(config.width)
        self.query_feat = nn.Embedding(config.queries, config.width)
        self.query_embed = nn.Embedding(config.queries, config.width)
        self.level_embed = nn.Embedding(_LEVELS, config.width)
        self.class_embed = nn.Linear(config.width, classes + 1)
        self.mask_embed = MaskEmbedding(config.width)

    def forward(self, features: PixelFeatures) -> list[SegmentLogits]:
        """Predict before the first layer and after each; the last prediction is the result."""
        values = [
            tokens + embed
            for tokens, embed in zip(features.tokens, self.level_embed.weight, strict=True)
        ]
        positions = self.query_embed.weight
        queries = self.query_feat.weight.expand(len(values[0]), -1, -1)
        predictions = [self._predict(queries, features.mask_features)]
        for number, (cross_attention, self_attention, feed_forward) in enumerate(
            zip(
                self.transformer_cross_attention_layers,
                self.transformer_self_attention_layers,
                self.transformer_ffn_layers,
                strict=True,
            )
        ):
            level = number % _LEVELS
            attended = attended_tokens(predictions[-1].masks, features.grids[level])
            queries = cross_attention(
                queries, positions, values[level], features.positions[level], attended
            )
            queries = feed_forward(self_attention(queries, positions))
            predictions.append(self._predict(queries, features.mask_features))
        return predictions

    def _predict(
        self, queries: Float[Tensor, "b q c"], mask_features: Float[Tensor, "b c h w"]
    ) -> SegmentLogits:
        normed = self.decoder_norm(queries)
        masks = torch.einsum("bqc,bchw->bqhw", self.mask_embed(normed), mask_features)
        return SegmentLogits(self.class_embed(normed), masks)


@torch.no_grad()
def attended_tokens(masks: Float[Tensor, "b q h w"], grid: Grid) -> Bool[Tensor, "b q n"]:
    """Find the tokens of a level that are in a query's mask; all where there is none."""
    resized = F.interpolate(masks.detach().float(), size=grid, mode="bilinear")
    inside = resized.sigmoid().flatten(2) >= 0.5
    return inside | ~inside.any(-1, keepdim=True)
