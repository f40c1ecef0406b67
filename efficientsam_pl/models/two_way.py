"""The two-way transformer of SAM's mask decoder: tokens look at the image, the image at the tokens.

Axes: m prompts (all images' prompts in one axis), t tokens, n image tokens, c channels.
"""

import math

import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float
from timm.layers import Mlp
from torch import Tensor, nn

from efficientsam_pl.models.config import MaskDecoderConfig

ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU}


class Attention(nn.Module):
    """Multi-head attention whose inner width may be a part of the outer one."""

    def __init__(self, channels: int, heads: int, shrink: int = 1) -> None:
        super().__init__()
        inner = channels // shrink
        self.heads = heads
        self.q_proj = nn.Linear(channels, inner)
        self.k_proj = nn.Linear(channels, inner)
        self.v_proj = nn.Linear(channels, inner)
        self.out_proj = nn.Linear(inner, channels)
        bound = math.sqrt(6 / (channels + 3 * inner))  # xavier, as if q, k, v were one matrix
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            nn.init.uniform_(projection.weight, -bound, bound)
            nn.init.zeros_(projection.bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, q: Float[Tensor, "m s c"], k: Float[Tensor, "m r c"], v: Float[Tensor, "m r c"]
    ) -> Float[Tensor, "m s c"]:
        """s queries look at r keys."""
        q, k, v = (
            projection(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        )
        attended = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.out_proj(attended.transpose(1, 2).flatten(-2))
        return out


class TwoWayBlock(nn.Module):
    """Tokens to tokens, tokens to image, an MLP on the tokens, image to tokens; a norm after each.

    Positions are added to queries and keys in every attention but the first block's first; the
    two releases differ in the attention of tokens to tokens, see `MaskDecoderConfig`.
    """

    def __init__(self, channels: int, config: MaskDecoderConfig, first: bool) -> None:
        super().__init__()
        self.first = first
        self.token_position = config.token_position
        self.self_attn = Attention(channels, config.heads)
        self.norm1 = nn.LayerNorm(channels)
        self.cross_attn_token_to_image = Attention(channels, config.heads, shrink=2)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, config.mlp_width, act_layer=ACTIVATIONS[config.activation])
        self.norm3 = nn.LayerNorm(channels)
        self.cross_attn_image_to_token = Attention(channels, config.heads, shrink=2)
        self.norm4 = nn.LayerNorm(channels)

    def forward(
        self,
        tokens: Float[Tensor, "m t c"],
        image: Float[Tensor, "m n c"],
        token_position: Float[Tensor, "m t c"],
        image_position: Float[Tensor, "1 n c"],
    ) -> tuple[Float[Tensor, "m t c"], Float[Tensor, "m n c"]]:
        """Updated tokens and updated image tokens."""
        tokens = self.norm1(self._tokens_to_tokens(tokens, token_position))
        placed_image = image + image_position
        looked = self.cross_attn_token_to_image(tokens + token_position, placed_image, image)
        tokens = self.norm2(tokens + looked)
        tokens = self.norm3(tokens + self.mlp(tokens))
        answered = self.cross_attn_image_to_token(placed_image, tokens + token_position, tokens)
        return tokens, self.norm4(image + answered)

    def _tokens_to_tokens(
        self, tokens: Float[Tensor, "m t c"], position: Float[Tensor, "m t c"]
    ) -> Float[Tensor, "m t c"]:
        placed = tokens if self.first else tokens + position
        if self.token_position == "summed":
            attended: Tensor = placed + self.self_attn(placed, placed, placed)
        elif self.first:
            attended = self.self_attn(tokens, tokens, tokens)
        else:
            attended = tokens + self.self_attn(placed, placed, tokens)
        return attended


class TwoWayTransformer(nn.Module):
    """The blocks and a last look of the tokens at the image (SAM, appendix A, figure 14)."""

    def __init__(self, channels: int, config: MaskDecoderConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayBlock(channels, config, first=i == 0) for i in range(config.depth)
        )
        self.final_attn_token_to_image = Attention(channels, config.heads, shrink=2)
        self.norm_final_attn = nn.LayerNorm(channels)

    def forward(
        self,
        tokens: Float[Tensor, "m t c"],
        image: Float[Tensor, "m n c"],
        image_position: Float[Tensor, "1 n c"],
    ) -> tuple[Float[Tensor, "m t c"], Float[Tensor, "m n c"]]:
        """Tokens and image tokens after they have looked at each other.

        As in SAM, a token's own embedding is its position.
        """
        token_position = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_position, image_position)
        looked = self.final_attn_token_to_image(
            tokens + token_position, image + image_position, image
        )
        return self.norm_final_attn(tokens + looked), image
