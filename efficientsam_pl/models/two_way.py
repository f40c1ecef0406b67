"""The two-way transformer of SAM's mask decoder: tokens look at the image, the image at the tokens.

A prompt has about ten tokens and an image thousands. So the image of one prompt is not projected:
a token's product with W x is that of W^T times the token with x, which is fewer numbers. An image
that several prompts share, as in the first block, is projected once for all of them.

Axes: p images, r prompts that share an image, t tokens, n image tokens, c channels, h heads,
d channels of a head. After a block each prompt has an image of its own, and r is 1.
"""

import math

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float
from timm.layers import Mlp
from torch import Tensor, nn

from efficientsam_pl.models.config import MaskDecoderConfig

ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU}


class Attention(nn.Module):
    """Multi-head attention of tokens to tokens; its inner width may be a part of the outer one."""

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
        self, q: Float[Tensor, "p r t c"], k: Float[Tensor, "p r t c"], v: Float[Tensor, "p r t c"]
    ) -> Float[Tensor, "p r t c"]:
        """The tokens of a prompt look at each other."""
        q, k, v = (
            self._split(projection(x))
            for projection, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        )
        return self._joined(F.scaled_dot_product_attention(q, k, v))

    def _split(self, projected: Float[Tensor, "p r t inner"]) -> Float[Tensor, "p r h t d"]:
        split: Tensor = projected.unflatten(-1, (self.heads, -1)).transpose(2, 3)
        return split

    def _joined(self, attended: Float[Tensor, "p r h t d"]) -> Float[Tensor, "p r t c"]:
        out: Tensor = self.out_proj(attended.transpose(2, 3).flatten(-2))
        return out

    def _scores(
        self,
        tokens: Float[Tensor, "p r h t d"],
        projection: nn.Linear,
        image: Float[Tensor, "p n c"],
    ) -> Float[Tensor, "p r h t n"]:
        """Scaled products of projected tokens with the image tokens' projection."""
        tokens = tokens * tokens.shape[-1] ** -0.5
        if tokens.shape[1] > 1:
            projected = projection(image).unflatten(-1, (self.heads, -1))
            return torch.einsum("prhtd,pnhd->prhtn", tokens, projected)
        weight, bias = self._of_heads(projection)
        sought = torch.einsum("prhtd,hdc->prhtc", tokens, weight).flatten(1, 3)
        offset = torch.einsum("prhtd,hd->prht", tokens, bias).flatten(1)[..., None]
        scores: Tensor = torch.baddbmm(offset, sought, image.transpose(1, 2))
        of_heads: Tensor = scores.unflatten(1, tokens.shape[1:4])
        return of_heads

    def _of_heads(
        self, projection: nn.Linear
    ) -> tuple[Float[Tensor, "h d c"], Float[Tensor, "h d"]]:
        split = (self.heads, -1)
        return projection.weight.unflatten(0, split), projection.bias.unflatten(0, split)


class TokenToImage(Attention):
    """Tokens look at the image."""

    def forward(
        self,
        tokens: Float[Tensor, "p r t c"],
        placed_image: Float[Tensor, "p n c"],
        image: Float[Tensor, "p n c"],
    ) -> Float[Tensor, "p r t c"]:
        """Queries are the tokens; keys are the image tokens with their position, values without."""
        queries = self._split(self.q_proj(tokens))
        weights = self._scores(queries, self.k_proj, placed_image).softmax(-1)
        if tokens.shape[1] > 1:
            values = self.v_proj(image).unflatten(-1, (self.heads, -1))
            return self._joined(torch.einsum("prhtn,pnhd->prhtd", weights, values))
        seen = (weights.flatten(1, 3) @ image).unflatten(1, weights.shape[1:4])
        weight, bias = self._of_heads(self.v_proj)
        # the weights over an image sum to 1, so that its values' bias comes out as it is
        return self._joined(torch.einsum("prhtc,hdc->prhtd", seen, weight) + bias[:, None])


class ImageToToken(Attention):
    """The image looks at the tokens."""

    def forward(
        self,
        placed_image: Float[Tensor, "p n c"],
        keys: Float[Tensor, "p r t c"],
        values: Float[Tensor, "p r t c"],
    ) -> Float[Tensor, "p r n c"]:
        """Queries are the image tokens with their position."""
        scores = self._scores(self._split(self.k_proj(keys)), self.q_proj, placed_image)
        weights = scores.softmax(-2).flatten(2, 3)
        out = self.out_proj.weight.unflatten(1, (self.heads, -1))
        told = torch.einsum("prhtd,chd->prhtc", self._split(self.v_proj(values)), out)
        told = told + self.out_proj.bias / self.heads  # each head's weights over t sum to 1
        return weights.transpose(2, 3) @ told.flatten(2, 3)


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
        self.cross_attn_token_to_image = TokenToImage(channels, config.heads, shrink=2)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, config.mlp_width, act_layer=ACTIVATIONS[config.activation])
        self.norm3 = nn.LayerNorm(channels)
        self.cross_attn_image_to_token = ImageToToken(channels, config.heads, shrink=2)
        self.norm4 = nn.LayerNorm(channels)

    def forward(
        self,
        tokens: Float[Tensor, "p r t c"],
        image: Float[Tensor, "p n c"],
        token_position: Float[Tensor, "p r t c"],
        image_position: Float[Tensor, "1 n c"],
    ) -> tuple[Float[Tensor, "p*r 1 t c"], Float[Tensor, "p*r n c"]]:
        """Updated tokens, and the image tokens as each prompt has updated them.

        Args:
            tokens: The prompts'.
            image: What the prompts look at.
            token_position: Where the tokens are.
            image_position: Where the image tokens are.
        """
        tokens = self.norm1(self._tokens_to_tokens(tokens, token_position))
        placed_image = image + image_position
        looked = self.cross_attn_token_to_image(tokens + token_position, placed_image, image)
        tokens = self.norm2(tokens + looked)
        tokens = self.norm3(tokens + self.mlp(tokens))
        answered = self.cross_attn_image_to_token(placed_image, tokens + token_position, tokens)
        image = self.norm4(image[:, None] + answered)
        return tokens.flatten(0, 1)[:, None], image.flatten(0, 1)

    def _tokens_to_tokens(
        self, tokens: Float[Tensor, "p r t c"], position: Float[Tensor, "p r t c"]
    ) -> Float[Tensor, "p r t c"]:
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
        self.final_attn_token_to_image = TokenToImage(channels, config.heads, shrink=2)
        self.norm_final_attn = nn.LayerNorm(channels)

    def forward(
        self,
        tokens: Float[Tensor, "p r t c"],
        image: Float[Tensor, "p n c"],
        image_position: Float[Tensor, "1 n c"],
    ) -> tuple[Float[Tensor, "p*r 1 t c"], Float[Tensor, "p*r n c"]]:
        """Tokens and image tokens after they have looked at each other.

        As in SAM, a token's own embedding is its position.
        """
        token_position = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_position, image_position)
            token_position = token_position.flatten(0, 1)[:, None]
        looked = self.final_attn_token_to_image(
            tokens + token_position, image + image_position, image
        )
        return self.norm_final_attn(tokens + looked), image
