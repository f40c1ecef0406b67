"""A promptable segmenter: EfficientSAM and SAM are two settings of one class.

Axes: b images, q prompts an image, c channels, g tokens a side, s pixels a side.
"""

from collections.abc import Iterable, Iterator
from typing import cast

import torch
from jaxtyping import Float, Int64, Num
from torch import Tensor, nn

from efficientsam_pl.models.cast_weights import call_with_cast_weights
from efficientsam_pl.models.config import SegmenterConfig
from efficientsam_pl.models.mask_decoder import MaskDecoder
from efficientsam_pl.models.prompt_encoder import PromptEncoder
from efficientsam_pl.models.vit import build_encoder
from efficientsam_pl.structures import Label, Prediction, Prompts, Region

# Image tokens of the prompts that are decoded together without gradients: those of four prompts of
# 64 x 64 stay in a processor's cache, those of 64 fill a GPU
_CHUNK_TOKENS = {"cpu": 4 * 64**2}
_CHUNK_TOKENS_ELSEWHERE = 64 * 64**2


class PixelNorm(nn.Module):
    """Scales pixel values 0..255 for the encoder; padding becomes exact zeros, as in SAM."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(
        self, image: Num[Tensor, "b 3 s s2"], content_hw: Int64[Tensor, "b 2"] | None = None
    ) -> Float[Tensor, "b 3 s s2"]:
        """Normalise pixels; those outside `content_hw` are padding."""
        pixels: Tensor = (image.float() - self.mean) / self.std
        if content_hw is None:
            return pixels
        height, width = content_hw[:, 0, None, None], content_hw[:, 1, None, None]
        row = torch.arange(image.shape[-2], device=image.device)[:, None]
        column = torch.arange(image.shape[-1], device=image.device)
        return pixels * ((row < height) & (column < width))[:, None]


class Segmenter(nn.Module):
    """Encodes an image once, decodes any number of prompts (paper, figure 2; SAM, figure 4)."""

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        self.config = config
        self.pixel_norm = PixelNorm(config.pixel_mean, config.pixel_std)
        self.image_encoder = build_encoder(config.encoder)
        self.prompt_encoder = PromptEncoder(config.prompts, config.encoder)
        self.mask_decoder = MaskDecoder(config.encoder.neck_channels, config.decoder)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights: float32, unless the whole model was converted for inference."""
        return self.mask_decoder.iou_token.weight.dtype

    def forward(
        self,
        image: Num[Tensor, "b 3 s s"],
        prompts: Prompts,
        content_hw: Int64[Tensor, "b 2"] | None = None,
    ) -> Prediction:
        """`encode`, then `decode`."""
        return self.decode(self.encode(image, content_hw), prompts)

    def blocks(self) -> list[nn.Module]:
        """Blocks of the image encoder, which are recomputed, compiled and sharded one by one."""
        return list(cast(nn.ModuleList, self.image_encoder.trunk.blocks))

    def regions(self) -> list[Region]:
        """List what is compiled as a whole where no block is sharded."""
        # in interactive rounds the number of points grows
        return [Region(self, "_encode", runs_blocks=True), Region(self, "_decode", dynamic=None)]

    def freeze(self, parts: Iterable[str]) -> None:
        """Stop training the weights of these modules, named as in `get_submodule`.

        They are left out of the optimizer too, whose weight decay would still change them.
        """
        for name in parts:
            self.get_submodule(name).requires_grad_(False)

    def unused_modules(self, labels: Iterable[Label], mask_logits: bool) -> list[str]:
        """List the modules that prompts of these kinds do not reach, for `freeze`.

        Args:
            labels: Those of all points and corners that will be given; padding may be left out.
            mask_logits: Whether masks will be given.
        """
        return [
            f"prompt_encoder.{n}" for n in self.prompt_encoder.unused_modules(labels, mask_logits)
        ]

    def decoding_parameters(self) -> list[nn.Parameter]:
        """Parameters of all modules that `decode` uses."""
        return [*self.prompt_encoder.parameters(), *self.mask_decoder.parameters()]

    def encode(
        self, image: Num[Tensor, "b 3 s s"], content_hw: Int64[Tensor, "b 2"] | None = None
    ) -> Float[Tensor, "b c g g"]:
        """Encode images at the model's size, values 0..255, to features.

        Args:
            image: As laid out by `geometry.Resize`.
            content_hw: Size of each frame without its padding; None: no padding.
        """
        pixels = self.pixel_norm(image, content_hw).to(self.dtype)
        return self._encode(pixels)

    def _encode(self, pixels: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b c g g"]:
        features: Tensor = call_with_cast_weights(self.image_encoder, pixels)
        return features

    def decode(self, features: Float[Tensor, "b c g g"], prompts: Prompts) -> Prediction:
        """Predict the masks of prompts in model pixels, all mask tokens, token 0 first.

        Raises:
            ValueError: The model does not take prompts of that kind or length.
        """
        if torch.is_grad_enabled():
            return self._decode(features, prompts)
        chunks = _chunks(prompts, self.decoder_batch_size(features))
        predictions = [self._decode(features, chunk) for chunk in chunks]
        if len(predictions) == 1:
            return predictions[0]
        return Prediction(
            torch.cat([prediction.low_res_logits for prediction in predictions], dim=1),
            torch.cat([prediction.iou for prediction in predictions], dim=1),
        )

    def decoder_batch_size(self, features: Float[Tensor, "b c g g"]) -> int:
        """Return the prompts per image that `decode` processes together without gradients."""
        tokens = _CHUNK_TOKENS.get(features.device.type, _CHUNK_TOKENS_ELSEWHERE)
        return max(1, tokens // features[:, 0].numel())

    def _decode(self, features: Float[Tensor, "b c g g"], prompts: Prompts) -> Prediction:
        # positions are float32 in any precision
        tokens, dense = call_with_cast_weights(self.prompt_encoder, prompts)
        position = self.prompt_encoder.dense_position().to(self.dtype)
        prediction: Prediction = call_with_cast_weights(
            self.mask_decoder, features, position, tokens.to(self.dtype), dense
        )
        return prediction


def _chunks(prompts: Prompts, chunk_size: int) -> Iterator[Prompts]:
    """Split the prompts of every image into chunks of at most that many."""
    boxes, masks = prompts.boxes_xyxy_px, prompts.mask_logits
    for first in range(0, max(prompts.labels.shape[1], 1), chunk_size):
        chunk = slice(first, first + chunk_size)
        yield Prompts(
            prompts.points_px[:, chunk],
            prompts.labels[:, chunk],
            None if boxes is None else boxes[:, chunk],
            None if masks is None else masks[:, chunk],
        )
