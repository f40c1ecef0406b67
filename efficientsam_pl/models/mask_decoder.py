"""SAM's mask decoder: candidate masks and the IoU expected of each, from features and prompts.

Axes: b images, q prompts an image, t prompt tokens, c channels, g image tokens a side.
"""

import torch
from jaxtyping import Float
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from efficientsam_pl.models.config import MaskDecoderConfig
from efficientsam_pl.models.two_way import ACTIVATIONS, TwoWayTransformer
from efficientsam_pl.structures import Prediction


class MaskDecoder(nn.Module):
    """Mask token 0 answers alone, tokens 1.. are candidates for an ambiguous prompt."""

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
        """Logits [b, q, tokens, 4g, 4g] and IoU [b, q, tokens] of every mask token, 0 first."""
        b, q = prompt_tokens.shape[:2]
        image = features[:, None]
        image = image if dense is None else image + dense
        image = image.expand(b, q, -1, -1, -1).flatten(0, 1)
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([own.expand(b * q, -1, -1), prompt_tokens.flatten(0, 1)], dim=1)
        tokens, attended = self.transformer(
            tokens, image.flatten(2).transpose(1, 2), position.flatten(2).transpose(1, 2)
        )
        upscaled = self.upscaling(attended.transpose(1, 2).unflatten(2, features.shape[-2:]))
        kernels = torch.stack(
            [head(tokens[:, 1 + i]) for i, head in enumerate(self.hypernetworks)], dim=1
        )
        logits = (kernels @ upscaled.flatten(2)).unflatten(2, upscaled.shape[-2:])
        return Prediction(
            low_res_logits=logits.unflatten(0, (b, q)),
            iou=self.iou_head(tokens[:, 0]).unflatten(0, (b, q)),
        )


def _head(inside: int, hidden: int, outside: int, activation: type[nn.Module]) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inside, hidden),
        activation(),
        nn.Linear(hidden, hidden),
        activation(),
        nn.Linear(hidden, outside),
    )
