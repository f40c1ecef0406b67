"""Pretraining decoders, which predict the masked tokens (paper, figure 3; MAE, section 3).

Axes: b images, n tokens of the grid, v visible ones, m masked ones (v + m = n), c channels.
"""

from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float
from torch import Tensor, nn

from efficientsam_pl.models.config import SamiConfig
from efficientsam_pl.models.layers import Block, Mlp, normalise
from efficientsam_pl.models.masking import TokenSplit
from efficientsam_pl.models.position_encoding import grid_positions

_norm = partial(nn.LayerNorm, eps=1e-6)


class CrossAttentionBlock(nn.Module):
    """Pre-norm block: masked tokens attend to visible and masked tokens, then an MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = _norm(width), _norm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.mlp = Mlp(width, 4 * width)

    def forward(
        self, masked: Float[Tensor, "b m c"], visible: Float[Tensor, "b v c"]
    ) -> Float[Tensor, "b m c"]:
        """Update the masked tokens; the visible tokens are normalised already."""
        queries = normalise(self.norm_attention, masked)
        keys = torch.cat([visible, queries], dim=1)
        k, v = map(self._heads, self.key_value(keys).chunk(2, dim=-1))
        attended = F.scaled_dot_product_attention(self._heads(self.query(queries)), k, v)
        masked = masked + self.out(attended.transpose(1, 2).flatten(-2))
        updated: Tensor = masked + self.mlp(normalise(self.norm_mlp, masked))
        return updated

    def _heads(self, x: Float[Tensor, "b r c"]) -> Float[Tensor, "b heads r d"]:
        heads: Tensor = x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return heads


class CrossAttentionDecoder(nn.Module):
    """Updates only the masked tokens, by cross-attention (paper, figure 3).

    The embedded encoder output is the same for every block, so it is normalised once; the head
    reads it at the visible positions.
    """

    def __init__(self, config: SamiConfig, target_width: int) -> None:
        super().__init__()
        width = config.decoder_width
        self.embed = nn.Linear(config.student.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = grid_positions(config.positions, config.student.grid(), width)
        self.norm_visible = _norm(width)
        self.blocks = nn.ModuleList(
            CrossAttentionBlock(width, config.decoder_heads) for _ in range(config.decoder_depth)
        )
        self.norm_masked = _norm(width)
        self.head = nn.Linear(width, target_width)
        _initialise(self)

    def forward(
        self, encoded: Float[Tensor, "b v c"], split: TokenSplit
    ) -> Float[Tensor, "b n target"]:
        """Predict features of every token, in image order."""
        embedded = self.embed(encoded)
        places = self.position.expand(len(encoded), -1, -1)
        visible_places, masked_places = split.separate(places)
        visible = normalise(self.norm_visible, embedded + visible_places, embedded.dtype)
        masked = (self.mask_token + masked_places).to(embedded.dtype)
        for block in self.blocks:
            masked = block(masked, visible)
        return self.head(split.restore(visible, normalise(self.norm_masked, masked)))


class SelfAttentionDecoder(nn.Module):
    """MAE's decoder: self-attention over visible tokens and mask tokens together.

    With SAMI this is the ablation of section 4.4, where all tokens are updated.
    """

    def __init__(self, config: SamiConfig, target_width: int) -> None:
        super().__init__()
        width = config.decoder_width
        self.embed = nn.Linear(config.student.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = grid_positions(config.positions, config.student.grid(), width)
        self.blocks = nn.ModuleList(
            Block(width, config.decoder_heads, _norm) for _ in range(config.decoder_depth)
        )
        self.norm = _norm(width)
        self.head = nn.Linear(width, target_width)
        _initialise(self)

    def forward(
        self, encoded: Float[Tensor, "b v c"], split: TokenSplit
    ) -> Float[Tensor, "b n target"]:
        """Predict features of every token, in image order."""
        mask_tokens = self.mask_token.expand(*split.masked.shape, -1)
        tokens = split.restore(self.embed(encoded), mask_tokens) + self.position
        for block in self.blocks:
            tokens = block(tokens)
        predicted: Tensor = self.head(self.norm(tokens))
        return predicted


FeatureDecoder = CrossAttentionDecoder | SelfAttentionDecoder


def build_decoder(config: SamiConfig, target_width: int) -> FeatureDecoder:
    """Build the decoder that a config names, freshly initialised."""
    if config.decoder == "self_attention":
        return SelfAttentionDecoder(config, target_width)
    return CrossAttentionDecoder(config, target_width)


def _initialise(decoder: FeatureDecoder) -> None:
    """Initialise as MAE (appendix A.1): xavier for linears."""
    for module in decoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.normal_(decoder.mask_token, std=0.02)
