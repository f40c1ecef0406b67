"""The two-way transformer of SAM's mask decoder: tokens attend to the image, then image to tokens.

A prompt has about ten tokens and an image has thousands. An image that belongs to a single prompt
is therefore not projected: q . (W x) = (W^T q) . x, and projecting the few queries is cheaper. An
image shared by several prompts, as in the first block, is projected once for all of them.

Axes: p images, r prompts that share an image, t tokens, n image tokens, c channels, h heads,
d channels of a head. After the first block each prompt has its own image tokens, and r is 1.
"""

import math

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float
from torch import Tensor, nn

from efficientsam_pl.models.config import MaskDecoderConfig
from efficientsam_pl.models.kernels.choice import Kernels, compute_dtype
from efficientsam_pl.models.kernels.image_to_token import image_to_token
from efficientsam_pl.models.kernels.token_to_image import attend_and_pass
from efficientsam_pl.models.layers import Mlp

_FOLDED_BYTES = 64 * 2**10  # of a prompt's folded tokens: as many as two of them fit on an SM

ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU}


class Attention(nn.Module):
    """Multi-head self-attention of tokens, optionally with a smaller inner width."""

    def __init__(self, channels: int, heads: int, shrink: int = 1) -> None:
        super().__init__()
        inner = channels // shrink
        self.heads = heads
        self.q_proj = nn.Linear(channels, inner)
        self.k_proj = nn.Linear(channels, inner)
        self.v_proj = nn.Linear(channels, inner)
        self.out_proj = nn.Linear(inner, channels)
        bound = math.sqrt(6 / (channels + 3 * inner))  # xavier of a fused q, k, v matrix
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            nn.init.uniform_(projection.weight, -bound, bound)
            nn.init.zeros_(projection.bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, q: Float[Tensor, "p r t c"], k: Float[Tensor, "p r t c"], v: Float[Tensor, "p r t c"]
    ) -> Float[Tensor, "p r t c"]:
        """Attend within the tokens of each prompt."""
        q, k, v = (
            self._split(projection(x))
            for projection, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        )
        return self._merge_heads(F.scaled_dot_product_attention(q, k, v))

    def _split(self, projected: Float[Tensor, "p r t inner"]) -> Float[Tensor, "p r h t d"]:
        split: Tensor = projected.unflatten(-1, (self.heads, -1)).transpose(2, 3)
        return split

    def _merge_heads(self, attended: Float[Tensor, "p r h t d"]) -> Float[Tensor, "p r t c"]:
        out: Tensor = self.out_proj(attended.transpose(2, 3).flatten(-2))
        return out

    def _folded(
        self, tokens: Float[Tensor, "p r h t d"], projection: nn.Linear
    ) -> Float[Tensor, "p r h t c"]:
        """Scale tokens and bring them to the space of the image: q . (W x) = (W^T q) . x."""
        return torch.einsum("prhtd,hdc->prhtc", self._scaled(tokens), self._per_head(projection)[0])

    def _scores(
        self,
        tokens: Float[Tensor, "p 1 h t d"],
        projection: nn.Linear,
        image: Float[Tensor, "p n c"],
        position: Float[Tensor, "1 n c"],
    ) -> Float[Tensor, "p 1 h t n"]:
        """Compute scaled dot products of projected tokens and projected, placed image tokens.

        In training the position's part is added to the products, so that the sum of image and
        position is not kept for each prompt. Without gradients the sum costs less than projecting
        the position: a single prompt would take 1.4 times as long on a CPU.
        """
        queries = self._folded(tokens, projection).flatten(1, 3)
        if torch.is_grad_enabled():
            placed = projection(position[0]).unflatten(-1, (self.heads, -1))
            offset = torch.einsum("prhtd,nhd->prhtn", self._scaled(tokens), placed)
        else:
            image = image + position
            bias = self._per_head(projection)[1]
            offset = torch.einsum("prhtd,hd->prht", self._scaled(tokens), bias)[..., None]
        scores: Tensor = torch.baddbmm(offset.flatten(1, 3), queries, image.transpose(1, 2))
        per_head: Tensor = scores.unflatten(1, tokens.shape[1:4])
        return per_head

    def _scaled(self, tokens: Float[Tensor, "p r h t d"]) -> Float[Tensor, "p r h t d"]:
        scaled: Tensor = tokens * tokens.shape[-1] ** -0.5
        return scaled

    def _per_head(
        self, projection: nn.Linear
    ) -> tuple[Float[Tensor, "h d c"], Float[Tensor, "h d"]]:
        split = (self.heads, -1)
        return projection.weight.unflatten(0, split), projection.bias.unflatten(0, split)


class TokenToImage(Attention):
    """Cross-attention from tokens to the image."""

    kernels: Kernels = "plain"

    def forward(  # type: ignore[override]
        self,
        tokens: Float[Tensor, "p r t c"],
        image: Float[Tensor, "p n c"],
        position: Float[Tensor, "1 n c"],
    ) -> tuple[Float[Tensor, "p r t c"], Float[Tensor, "p n c"]]:
        """Attend from tokens to image tokens, whose keys have the position added, values not.

        Returns:
            The attended tokens, and the image as it is, for its next use (see `attend_and_pass`).
        """
        queries = self._split(self.q_proj(tokens))
        if tokens.shape[1] != 1:
            return self._attend_shared(queries, image, position), image
        if self.kernels == "triton" and fits_kernels(queries, image):
            folded = self._folded(queries, self.k_proj).flatten(0, 1).to(image.dtype)
            # the softmax is the same for any bias of the keys, whose gradient is 0, not missing
            folded = (folded + 0 * self.k_proj.bias.sum()).contiguous()
            pooled, image = attend_and_pass(image, position[0], folded)
            pooled = pooled[:, None]
        else:
            weights = self._scores(queries, self.k_proj, image, position).softmax(-1)
            pooled = (weights.flatten(1, 3) @ image).unflatten(1, weights.shape[1:4])
        weight, bias = self._per_head(self.v_proj)
        # attention weights sum to 1 over the image, so the bias of the values is added unchanged
        values = torch.einsum("prhtc,hdc->prhtd", pooled, weight) + bias[:, None]
        return self._merge_heads(values), image

    def _attend_shared(
        self,
        queries: Float[Tensor, "p r h t d"],
        image: Float[Tensor, "p n c"],
        position: Float[Tensor, "1 n c"],
    ) -> Float[Tensor, "p r t c"]:
        """Attend from the tokens of all prompts to the image that they share, projected once."""
        keys, values = (
            projection(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection, x in ((self.k_proj, image + position), (self.v_proj, image))
        )
        together = queries.transpose(1, 2).flatten(2, 3)
        attended = F.scaled_dot_product_attention(together, keys, values)
        return self._merge_heads(attended.unflatten(2, queries.shape[1:4:2]).transpose(1, 2))


class ImageToToken(Attention):
    """Cross-attention from the image to the tokens, with its residual and its layer norm."""

    kernels: Kernels = "plain"

    def forward(  # type: ignore[override]
        self,
        image: Float[Tensor, "p n c"],
        position: Float[Tensor, "1 n c"],
        keys: Float[Tensor, "p r t c"],
        values: Float[Tensor, "p r t c"],
        norm: nn.LayerNorm,
    ) -> Float[Tensor, "p r n c"]:
        """Update image tokens, with their position added in queries, once per prompt.

        Args:
            image: Image tokens.
            position: Position encoding of the image tokens.
            keys: Tokens of each prompt with their position added.
            values: Tokens of each prompt.
            norm: Follows the residual.
        """
        split = self._split(self.k_proj(keys))
        out = self.out_proj.weight.unflatten(1, (self.heads, -1))
        projected = torch.einsum("prhtd,chd->prhtc", self._split(self.v_proj(values)), out)
        # the weights of each head sum to 1 over t, so every head carries its share of the bias
        projected = projected + self.out_proj.bias / self.heads
        if self.kernels == "triton" and fits_kernels(split, image):
            offset = (self._scaled(split) * self._per_head(self.q_proj)[1][:, None]).sum(-1)
            folded = [
                x.flatten(0, 1).to(image.dtype).contiguous()
                for x in (self._folded(split, self.q_proj), offset, projected)
            ]
            updated: Tensor = image_to_token(
                image, position[0], *folded, norm.weight, norm.bias, norm.eps
            ).unflatten(0, keys.shape[:2])
            return updated
        if keys.shape[1] != 1:
            queries = self.q_proj(image + position).unflatten(-1, (self.heads, -1))
            scores = torch.einsum("prhtd,pnhd->prhtn", self._scaled(split), queries)
        else:
            scores = self._scores(split, self.q_proj, image, position)
        weights = scores.softmax(-2).flatten(2, 3)
        attended = weights.transpose(2, 3) @ projected.flatten(2, 3)
        normed: Tensor = norm(attended.add_(image[:, None]))
        return normed.to(image.dtype)


class TwoWayBlock(nn.Module):
    """Self-attention, tokens to image, MLP on the tokens, image to tokens; a norm after each.

    Positions are added to queries and keys in every attention but the first block's
    self-attention, where the two releases differ (see `MaskDecoderConfig.token_position`).
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
        """Update the tokens, and the image tokens once per prompt.

        Args:
            tokens: Prompt and output tokens.
            image: Image tokens.
            token_position: Position encoding of the tokens.
            image_position: Position encoding of the image tokens.
        """
        tokens = self.norm1(self._attend_to_tokens(tokens, token_position))
        attended, image = self.cross_attn_token_to_image(
            tokens + token_position, image, image_position
        )
        tokens = self.norm2(tokens + attended)
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = self.cross_attn_image_to_token(
            image, image_position, tokens + token_position, tokens, self.norm4
        )
        return tokens.flatten(0, 1)[:, None], image.flatten(0, 1)

    def _attend_to_tokens(
        self, tokens: Float[Tensor, "p r t c"], position: Float[Tensor, "p r t c"]
    ) -> Float[Tensor, "p r t c"]:
        queries = tokens if self.first else tokens + position
        if self.token_position == "summed":
            attended: Tensor = queries + self.self_attn(queries, queries, queries)
        elif self.first:
            attended = self.self_attn(tokens, tokens, tokens)
        else:
            attended = tokens + self.self_attn(queries, queries, tokens)
        return attended


class TwoWayTransformer(nn.Module):
    """Two-way blocks and a final token-to-image attention (SAM, appendix A, figure 14)."""

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
        """Update tokens and image tokens through all blocks.

        As in SAM, the initial embedding of a token serves as its position encoding. Image tokens
        stay in the dtype of matrix products: a prompt has thousands of its own.
        """
        dtype = compute_dtype(image)
        image, image_position = image.to(dtype), image_position.to(dtype)
        token_position = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_position, image_position)
            token_position = token_position.flatten(0, 1)[:, None]
        attended, image = self.final_attn_token_to_image(
            tokens + token_position, image, image_position
        )
        return self.norm_final_attn(tokens + attended), image


def fits_kernels(tokens: Float[Tensor, "p r h t d"], image: Float[Tensor, "p n c"]) -> bool:
    """Check whether the fused operators take these sizes; others are computed by plain operations.

    Heads and channels must be powers of two, channels at least 16, and a prompt's folded tokens,
    each head's padded to a power of two, at most 64 KiB: with SAM's 256 channels and 8 heads 16
    tokens in bf16, 8 in float32.
    """
    if 0 in tokens.shape:  # no prompt
        return False
    heads, channels = tokens.shape[2], image.shape[-1]
    most = _FOLDED_BYTES // (heads * channels * image.element_size())
    if most < 1 or channels < 16 or heads & (heads - 1) or channels & (channels - 1):
        return False
    return tokens.shape[3] <= 1 << (most.bit_length() - 1)
