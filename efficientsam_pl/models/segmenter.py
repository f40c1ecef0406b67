"""A promptable segmenter: EfficientSAM and SAM are two settings of one class.

Axes: b images, q prompts an image, c channels, g tokens a side, s pixels a side.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar, cast

import torch
from jaxtyping import Float, Int64, Num
from torch import Tensor, nn

from efficientsam_pl.models.config import SegmenterConfig
from efficientsam_pl.models.mask_decoder import MaskDecoder
from efficientsam_pl.models.prompt_encoder import PromptEncoder
from efficientsam_pl.models.vit import build_encoder
from efficientsam_pl.structures import Label, Prediction, Prompts

T = TypeVar("T")
# Image tokens of the prompts that are answered together where no gradient is kept: those of four
# prompts of 64 x 64 stay in a processor's cache, those of 64 fill a GPU
_TOKENS_AT_ONCE = {"cpu": 4 * 64**2}
_TOKENS_AT_ONCE_ELSEWHERE = 64 * 64**2


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

    def heads(self) -> list[nn.Module]:
        """What comes after the blocks and may be compiled whole."""
        return [self.mask_decoder]

    def freeze(self, parts: Iterable[str]) -> None:
        """Keeps the weights of these modules, named as in `get_submodule`, as they are.

        What never learns must not be given to an optimizer either: its weight decay would go on.
        """
        for name in parts:
            self.get_submodule(name).requires_grad_(False)

    def unused_modules(self, labels: Iterable[Label], mask_logits: bool) -> list[str]:
        """Modules that prompts of these kinds do not reach, for `freeze`.

        Args:
            labels: Of all points and corners that will be given; padding need not be told.
            mask_logits: Whether masks will be given.
        """
        return [
            f"prompt_encoder.{n}" for n in self.prompt_encoder.unused_modules(labels, mask_logits)
        ]

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
        if torch.is_grad_enabled():
            return self._decode(features, prompts)
        limit = _TOKENS_AT_ONCE.get(features.device.type, _TOKENS_AT_ONCE_ELSEWHERE)
        at_once = max(1, limit // features[:, 0].numel())
        answers = [self._decode(features, some) for some in _parts(prompts, at_once)]
        if len(answers) == 1:
            return answers[0]
        return Prediction(
            torch.cat([answer.low_res_logits for answer in answers], dim=1),
            torch.cat([answer.iou for answer in answers], dim=1),
        )

    def _decode(self, features: Float[Tensor, "b c g g"], prompts: Prompts) -> Prediction:
        tokens, dense = self.prompt_encoder(prompts)
        prediction: Prediction = self.mask_decoder(
            features, self.prompt_encoder.dense_position(), tokens, dense
        )
        return prediction


def _parts(prompts: Prompts, at_once: int) -> Iterator[Prompts]:
    """The prompts of every photo, at most so many together."""
    boxes, masks = prompts.boxes_xyxy_px, prompts.mask_logits
    for first in range(0, max(prompts.labels.shape[1], 1), at_once):
        some = slice(first, first + at_once)
        yield Prompts(
            prompts.points_px[:, some],
            prompts.labels[:, some],
            None if boxes is None else boxes[:, some],
            None if masks is None else masks[:, some],
        )
