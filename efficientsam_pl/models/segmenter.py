"""A promptable segmenter: EfficientSAM and SAM are two settings of one class.

Axes: b images, q prompts an image, c channels, g tokens a side, s pixels a side.
"""

from collections.abc import Callable
from typing import TypeVar, cast

import torch
from jaxtyping import Float, Int64, Num
from torch import Tensor, nn

from efficientsam_pl.models.config import SegmenterConfig
from efficientsam_pl.models.mask_decoder import MaskDecoder
from efficientsam_pl.models.prompt_encoder import PromptEncoder
from efficientsam_pl.models.vit import build_encoder
from efficientsam_pl.structures import Prediction, Prompts

T = TypeVar("T")


class PixelNorm(nn.Module):
    """Pixel values 0..255 to the encoder's scale; the padding becomes exact zeros, as in SAM."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(
        self, image: Num[Tensor, "b 3 s s2"], content_hw: Int64[Tensor, "b 2"] | None = None
    ) -> Float[Tensor, "b 3 s s2"]:
        """Normalised pixels; what lies outside `content_hw` is padding."""
        pixels: Tensor = (image.float() - self.mean) / self.std
        if content_hw is None:
            return pixels
        height, width = content_hw[:, 0, None, None], content_hw[:, 1, None, None]
        row = torch.arange(image.shape[-2], device=image.device)[:, None]
        column = torch.arange(image.shape[-1], device=image.device)
        return pixels * ((row < height) & (column < width))[:, None]


class Segmenter(nn.Module):
    """Encodes a photo once, answers many prompts about it (paper, figure 2; SAM, figure 4)."""

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        self.config = config
        self.pixel_norm = PixelNorm(config.pixel_mean, config.pixel_std)
        self.image_encoder = build_encoder(config.encoder)
        self.prompt_encoder = PromptEncoder(config.prompts, config.encoder)
        self.mask_decoder = MaskDecoder(config.encoder.neck_channels, config.decoder)

    def forward(
        self,
        image: Num[Tensor, "b 3 s s"],
        use: Callable[[Float[Tensor, "b c g g"]], T],
        content_hw: Int64[Tensor, "b 2"] | None = None,
    ) -> T:
        """What `use` makes of the photos' features: it may `decode` as often as it likes.

        All of it is one call of the module, since FSDP2 gathers weights for a call.
        """
        return use(self.encode(image, content_hw))

    def blocks(self) -> list[nn.Module]:
        """The image encoder's blocks, which are computed, compiled and sharded one by one."""
        return list(cast(nn.ModuleList, self.image_encoder.trunk.blocks))

    def decoding_parameters(self) -> list[nn.Parameter]:
        """Of what comes after the features."""
        return [*self.prompt_encoder.parameters(), *self.mask_decoder.parameters()]

    def encode(
        self, image: Num[Tensor, "b 3 s s"], content_hw: Int64[Tensor, "b 2"] | None = None
    ) -> Float[Tensor, "b c g g"]:
        """Features of photos at the model's size, values 0..255.

        Args:
            image: As laid out by `geometry.Resize`.
            content_hw: The part of each frame that is photo; None: all of it.
        """
        features: Tensor = self.image_encoder(self.pixel_norm(image, content_hw))
        return features

    def decode(self, features: Float[Tensor, "b c g g"], prompts: Prompts) -> Prediction:
        """Answers of all mask tokens to prompts in model pixels, token 0 first.

        Raises:
            ValueError: A prompt of a kind, or of a length, that this model does not know.
        """
        tokens, dense = self.prompt_encoder(prompts)
        prediction: Prediction = self.mask_decoder(
            features, self.prompt_encoder.dense_position(), tokens, dense
        )
        return prediction
