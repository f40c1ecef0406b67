"""SAM's mask decoder: candidate masks with their predicted IoU, from features and prompts.

Axes: b images, q prompts per image, t prompt tokens, c channels, g image tokens per side,
m prompts of all images, k mask tokens, e channels of a kernel.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float
from torch import Tensor, nn

from efficientsam_pl.models.config import MaskDecoderConfig
from efficientsam_pl.models.kernels.choice import Kernels
from efficientsam_pl.models.kernels.mask_upscaling import UpscalingWeights, fused_mask_logits
from efficientsam_pl.models.layers import LayerNorm2d
from efficientsam_pl.models.two_way import ACTIVATIONS, TwoWayTransformer
from efficientsam_pl.structures import Prediction


class MaskDecoder(nn.Module):
    """Predicts a single mask (token 0) and candidates for ambiguous prompts (tokens 1..)."""

    kernels: Kernels = "plain"

    def __init__(self, channels: int, config: MaskDecoderConfig) -> None:
        super().__init__()
        tokens = config.candidates + 1
        activation = ACTIVATIONS[config.activation]
        self.iou_token = nn.Embedding(1, channels)
        self.mask_tokens = nn.Embedding(tokens, channels)
        self.transformer = TwoWayTransformer(channels, config)
        self.upscaling = nn.Sequential(
            nn.ConvTranspose2d(channels, channels // 4, kernel_size=2, stride=2),
            nn.GroupNorm(1, channels // 4)
            if config.upscaling_norm == "group_norm"
            else LayerNorm2d(channels // 4),
            nn.GELU(),
            nn.ConvTranspose2d(channels // 4, channels // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.hypernetworks = nn.ModuleList(
            _head(channels, channels, channels // 8, activation) for _ in range(tokens)
        )
        self.iou_head = _head(channels, config.iou_head_width, tokens, activation)

    def forward(
        self,
        features: Float[Tensor, "b c gh gw"],
        position: Float[Tensor, "1 c gh gw"],
        prompt_tokens: Float[Tensor, "b q t c"],
        dense: Float[Tensor, "b2 q2 c dh dw"] | None,
    ) -> Prediction:
        """Predict logits [b, q, tokens, 4g, 4g] and IoU [b, q, tokens] of every mask token."""
        b, q = prompt_tokens.shape[:2]
        image = features.permute(0, 2, 3, 1)[:, None]
        if dense is not None:
            image = image + dense.permute(0, 1, 3, 4, 2)
        output_tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([output_tokens.expand(b, q, -1, -1), prompt_tokens], dim=2)
        prompts_per_image = q if image.shape[1] == 1 else 1  # dense prompts: one image per prompt
        tokens, attended = self.transformer(
            tokens.reshape(b * image.shape[1], prompts_per_image, *tokens.shape[2:]),
            image.flatten(2, 3).flatten(0, 1).contiguous(),
            position.flatten(2).transpose(1, 2).contiguous(),
        )
        tokens = tokens.flatten(0, 1)
        kernels = self._kernels_of(tokens[:, 1 : 1 + len(self.hypernetworks)])
        logits = self._mask_logits(kernels, attended.unflatten(1, features.shape[-2:]))
        return Prediction(
            low_res_logits=logits.unflatten(0, (b, q)),
            iou=self.iou_head(tokens[:, 0]).unflatten(0, (b, q)),
        )

    def _kernels_of(self, mask_tokens: Float[Tensor, "m k c"]) -> Float[Tensor, "m k e"]:
        """Apply each mask token's own head, all heads in one batched product per layer."""
        x = mask_tokens.transpose(0, 1)
        heads = [cast(nn.Sequential, head) for head in self.hypernetworks]
        for layers in zip(*heads, strict=True):
            if isinstance(layers[0], nn.Linear):
                weight = torch.stack([layer.weight for layer in layers])
                bias = torch.stack([layer.bias for layer in layers])
                x = torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))
            else:
                x = layers[0](x)
        return x.transpose(0, 1)

    def _mask_logits(
        self, kernels: Float[Tensor, "m k e"], attended: Float[Tensor, "m gh gw c"]
    ) -> Float[Tensor, "m k 4*gh 4*gw"]:
        """Upscale the image tokens twice and multiply each pixel with each mask token's kernel.

        A transposed convolution with kernel = stride is a linear layer on every token, so the
        pixels are rearranged only once, when they are logits instead of channels.
        """
        layers: Any = self.upscaling
        first, norm, activation, second, last = layers
        (w1, b1), (w2, b2) = _as_linear(first), _as_linear(second)
        if self.kernels == "triton" and len(attended) > 0:
            norm = cast(LayerNorm2d | nn.GroupNorm, norm)
            weights = UpscalingWeights(w1, b1, norm.weight, norm.bias, w2, b2)
            per_pixel = isinstance(norm, LayerNorm2d)
            return fused_mask_logits(attended, kernels, weights, per_pixel, norm.eps)
        quarters = F.linear(attended.flatten(1, 2), w1, b1.repeat(4)).unflatten(-1, (4, -1))
        quarters = norm(quarters.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        pixels = last(F.linear(activation(quarters), w2, b2.repeat(4))).unflatten(-1, (4, -1))
        logits = kernels @ pixels.flatten(1, 3).transpose(1, 2)
        split = logits.unflatten(2, (*attended.shape[1:3], 2, 2, 2, 2))
        rows_then_columns = split.permute(0, 1, 2, 4, 6, 3, 5, 7)
        mask_logits: Tensor = rows_then_columns.flatten(5, 7).flatten(2, 4)
        return mask_logits


def _as_linear(convolution: nn.Module) -> tuple[Float[Tensor, "rows c"], Float[Tensor, "o"]]:
    """Return a transposed convolution of kernel and stride 2 as a layer on every token.

    Its outputs are ordered by row, column and channel; the bias is that of every pixel.
    """
    assert isinstance(convolution, nn.ConvTranspose2d)
    assert convolution.bias is not None
    return convolution.weight.permute(2, 3, 1, 0).flatten(0, 2), convolution.bias


def _head(inside: int, hidden: int, outside: int, activation: type[nn.Module]) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inside, hidden),
        activation(),
        nn.Linear(hidden, hidden),
        activation(),
        nn.Linear(hidden, outside),
    )
