"""Pretraining decoders, which predict the masked tokens (paper, figure 3; MAE, section 3).

Axes: b images, n tokens of the grid, v visible ones, m masked ones (v + m = n), c channels.
"""

from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int64
from torch import Tensor, nn

from efficientsam_pl.models.config import SamiConfig
from efficientsam_pl.models.layers import Block, Mlp, normalise
from efficientsam_pl.models.masking import TokenSplit, permute_tokens
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
        self,
        masked: Float[Tensor, "#b _ c"],
        visible: Float[Tensor, "b v c"],
        *order_and_inverse: Int64[Tensor, "b n"],
    ) -> Float[Tensor, "b m c"]:
        """Update the masked tokens; the visible tokens are normalised already.

        Args:
            masked: Those of each image; in the first block those of every place, which all images
                share, so that they are projected once.
            visible: The keys and values besides the masked tokens.
            order_and_inverse: Of the first block: the permutation of each image's tokens that puts
                the visible ones first, and its inverse.
        """
        queries = normalise(self.norm_attention, masked)
        project = partial(F.linear, weight=self.key_value.weight)
        if order_and_inverse:
            order, inverse = order_and_inverse
            masked, query, key_value = (
                permute_tokens(x.expand(len(visible), -1, -1), order, inverse, visible.shape[1])
                for x in (masked, self.query(queries), project(queries))
            )
            key_value = torch.cat([project(visible), key_value], dim=1)
        else:
            query = self.query(queries)
            key_value = project(torch.cat([visible, queries], dim=1))
        k, v = map(self._heads, key_value.chunk(2, dim=-1))
        attended = F.scaled_dot_product_attention(self._heads(query), k, v)
        masked = masked + self._projected(attended.transpose(1, 2).flatten(-2))
        updated: Tensor = masked + self.mlp(normalise(self.norm_mlp, masked))
        return updated

    def _projected(self, attended: Float[Tensor, "b m c"]) -> Float[Tensor, "b m c"]:
        """Project what was attended without the biases of keys and values.

        A bias of all keys changes no attention weight, and since these add up to 1, that of the
        values passes through them: it is added here, and its gradient needs no sum over all keys.
        """
        value_bias = self.key_value.bias.chunk(2)[1]
        bias = F.linear(value_bias, self.out.weight, self.out.bias)
        return F.linear(attended, self.out.weight, bias)

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
        order, inverse = split.order_and_inverse()
        of_images = self.position.expand(len(encoded), -1, -1)
        places = permute_tokens(of_images, order, inverse, last=embedded.shape[1])
        visible = normalise(self.norm_visible, embedded + places, embedded.dtype)
        masked = (self.mask_token + self.position).to(embedded.dtype)
        for number, block in enumerate(self.blocks):
            masked = block(masked, visible) if number else block(masked, visible, order, inverse)
        return split.restore(self.head(visible), self.head(normalise(self.norm_masked, masked)))


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
