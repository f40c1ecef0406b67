"""SAMI: a small ViT learns to predict SAM's features from a quarter of the photo (paper, 3.2).

Axes: b images, n tokens of the grid, v visible ones, m masked ones (v + m = n), c channels.
"""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int64, Num
from timm.layers import Mlp
from torch import Tensor, nn

from efficientsam_pl.draws import uniform
from efficientsam_pl.models.config import NAMED, SamiConfig
from efficientsam_pl.models.segmenter import PixelNorm
from efficientsam_pl.models.vit import PlainViT


@dataclass(frozen=True)
class TokenSplit:
    """Which tokens are seen and which are predicted; together each token exactly once."""

    visible: Int64[Tensor, "b v"]
    masked: Int64[Tensor, "b m"]

    def restore(
        self, visible: Float[Tensor, "b v c"], masked: Float[Tensor, "b m c"]
    ) -> Float[Tensor, "b n c"]:
        """Tokens of both sets back at their places in the image."""
        order = torch.cat([self.visible, self.masked], dim=1).argsort(dim=1)
        tokens = torch.cat([visible, masked], dim=1)
        return tokens.gather(1, order[..., None].expand(-1, -1, tokens.shape[-1]))


def random_split(draw_key: Int64[Tensor, "b"], tokens: int, visible: int) -> TokenSplit:
    """Uniform random masking as in MAE; a function of each sample's key alone."""
    order = uniform(draw_key, tokens, "sami-mask").argsort(dim=1, stable=True)
    return TokenSplit(order[:, :visible], order[:, visible:])


class CrossAttentionBlock(nn.Module):
    """Queries look at keys, then an MLP; norms before, as in MAE's blocks."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.heads = heads
        self.norm_query, self.norm_key, self.norm_mlp = norm(width), norm(width), norm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.mlp = Mlp(width, 4 * width)

    def forward(
        self, queries: Float[Tensor, "b m c"], keys: Float[Tensor, "b r c"]
    ) -> Float[Tensor, "b m c"]:
        """Updated queries."""
        q = self._heads(self.query(self.norm_query(queries)))
        k, v = map(self._heads, self.key_value(self.norm_key(keys)).chunk(2, dim=-1))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
        queries = queries + self.out(attended)
        updated: Tensor = queries + self.mlp(self.norm_mlp(queries))
        return updated

    def _heads(self, x: Float[Tensor, "b r c"]) -> Float[Tensor, "b heads r d"]:
        heads: Tensor = x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return heads


class CrossAttentionDecoder(nn.Module):
    """Mask tokens gather from the encoder's output and from each other (paper, figure 3).

    Every block's keys and values are the embedded encoder output, which stays as it is, and the
    mask tokens. With `decoder_tokens="all"` the visible tokens are updated too (ablation, 4.4).
    """

    def __init__(self, config: SamiConfig, target_width: int) -> None:
        super().__init__()
        width = config.decoder_width
        self.update_all = config.decoder_tokens == "all"
        self.embed = nn.Linear(config.student.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = _positions(config, width)
        self.blocks = nn.ModuleList(
            CrossAttentionBlock(width, config.decoder_heads) for _ in range(config.decoder_depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, target_width)
        self.apply(_xavier)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(
        self, encoded: Float[Tensor, "b v c"], split: TokenSplit
    ) -> Float[Tensor, "b n target"]:
        """Predicted features of every token in image order."""
        visible = self.embed(encoded) + self._at(split.visible)
        masked = self.mask_token + self._at(split.masked)
        for block in self.blocks:
            keys = torch.cat([visible, masked], dim=1)
            if self.update_all:
                visible, masked = block(keys, keys).split([visible.shape[1], masked.shape[1]], 1)
            else:
                masked = block(masked, keys)
        predicted: Tensor = self.head(self.norm(split.restore(visible, masked)))
        return predicted

    def _at(self, index: Int64[Tensor, "b r"]) -> Float[Tensor, "b r c"]:
        return self.position[0, index]


class Sami(nn.Module):
    """Student encoder on the visible tokens, cross-attention decoder, one linear head."""

    def __init__(self, config: SamiConfig, target_width: int) -> None:
        super().__init__()
        self.config = config
        self.pixel_norm = PixelNorm(NAMED["sam_vit_h"].pixel_mean, NAMED["sam_vit_h"].pixel_std)
        self.encoder = PlainViT(config.student)
        if config.positions == "fixed":
            grid, width = config.student.position_grid, config.student.width
            with torch.no_grad():
                self.encoder.pos_embed[:, 1:] = sine_positions(grid, width)
            self.encoder.pos_embed.requires_grad_(False)
        self.encoder_norm = (
            nn.LayerNorm(config.student.width, eps=1e-6)
            if config.encoder_norm == "layer_norm"
            else nn.Identity()
        )
        self.decoder = CrossAttentionDecoder(config, target_width)

    def forward(
        self, image: Num[Tensor, "b 3 s s"], draw_key: Int64[Tensor, "b"]
    ) -> tuple[Float[Tensor, "b n target"], TokenSplit]:
        """Predicted teacher features of all tokens, and which of them were seen.

        Args:
            image: Photos at the student's size, values 0..255.
            draw_key: Decides each photo's mask.
        """
        split = random_split(
            draw_key, self.config.student.grid() ** 2, self.config.visible_tokens()
        )
        encoded = self.encoder_norm(self.encoder(self.pixel_norm(image), split.visible))
        return self.decoder(encoded, split), split


def sine_positions(grid: int, width: int) -> Float[Tensor, "1 n c"]:
    """MAE's fixed positions: sine and cosine of row and column, half of the width each."""
    frequency = 1 / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angle = torch.arange(grid, dtype=torch.float64)[:, None] * frequency
    axis = torch.cat([angle.sin(), angle.cos()], dim=-1)
    column = axis[None].expand(grid, -1, -1)
    row = axis[:, None].expand(-1, grid, -1)
    return torch.cat([column, row], dim=-1).reshape(1, grid * grid, width).float()


def _positions(config: SamiConfig, width: int) -> nn.Parameter:
    grid = config.student.grid()
    if config.positions == "fixed":
        return nn.Parameter(sine_positions(grid, width), requires_grad=False)
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(1, grid**2, width), std=0.02))


def _xavier(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
