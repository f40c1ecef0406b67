"""Embed points, boxes and masks: the prompt encoders of SAM and EfficientSAM in one class.

Axes: b images, q prompts per image, t points per prompt, c channels, g tokens per side.
"""

import math
from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int64
from torch import Tensor, nn

from efficientsam_pl.models.config import EncoderConfig, PromptEncoderConfig
from efficientsam_pl.models.prompt_maps import (
    LOGITS_PER_TOKEN,
    downscale,
    downscaling,
    draw_prompts,
)
from efficientsam_pl.structures import Label, Prompts


class RandomFourierPosition(nn.Module):
    """Random Fourier features of a position (Tancik et al. 2020; SAM, appendix A)."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        frequencies = scale * torch.randn(2, channels // 2)
        self.register_buffer("positional_encoding_gaussian_matrix", frequencies)

    def forward(self, points_unit: Float[Tensor, "*p 2"]) -> Float[Tensor, "*p c"]:
        """Encode (x, y) in [0, 1]; always in float32, since bf16 cannot resolve a pixel of 1024."""
        turns = self.positional_encoding_gaussian_matrix.float()
        x, y = (2 * points_unit.float() - 1)[..., None].unbind(-2)
        angle = 2 * math.pi * (x * turns[0] + y * turns[1])  # no product that autocast would round
        return torch.cat([angle.sin(), angle.cos()], dim=-1)

    def grid(self, side: int) -> Float[Tensor, "1 c side side"]:
        """Encode the centre of every cell of a square grid."""
        device = self.positional_encoding_gaussian_matrix.device
        centre = (torch.arange(side, device=device) + 0.5) / side
        y, x = torch.meshgrid(centre, centre, indexing="ij")
        encoding: Tensor = self(torch.stack([x, y], dim=-1))
        return encoding.permute(2, 0, 1)[None]


class PromptEncoder(nn.Module):
    """Adds a learned embedding per label to each point's position; downscales mask prompts."""

    def __init__(self, config: PromptEncoderConfig, encoder: EncoderConfig) -> None:
        super().__init__()
        channels = encoder.neck_channels
        self.config = config
        self.image_size = encoder.image_size
        self.grid_size = encoder.grid()
        self.pe_layer = RandomFourierPosition(channels, config.position_scale)
        labels = [label for label in Label if label != Label.NEGATIVE or config.negative_clicks]
        self.label_vectors = nn.ModuleDict(
            {label.name.lower(): nn.Embedding(1, channels) for label in labels}
        )
        self.no_mask_embed: nn.Embedding | None = None
        self.mask_downscaling: nn.Sequential | None = None
        if config.mask_prompts:
            self.no_mask_embed = nn.Embedding(1, channels)
            self.mask_downscaling = downscaling(1, (4, 16), channels)
        self.map_downscaling = downscaling(3, (16, 64), channels) if config.drawn_prompts else None

    def forward(
        self, prompts: Prompts
    ) -> tuple[Float[Tensor, "b q t c"], Float[Tensor, "b2 q2 c dh dw"] | None]:
        """Embed points and boxes as tokens and masks as a dense embedding.

        Returns:
            One token per point, and the dense embedding, which is added to the image features:
            [b, q, c, g, g] for mask or drawn prompts, [1, 1, c, 1, 1] for SAM without a mask, None
            for models that support neither.

        Raises:
            ValueError: Too many points, or a mask prompt that the model does not support.
        """
        points, labels = self.padded_points(prompts)
        if self.config.padding_position == "kept":
            points = points.where(points >= 0, -1.0)  # as released: below 0 is "no point"
        position = self.pe_layer((points + 0.5) / self.image_size)
        if self.config.padding_position == "zeroed":
            position = position.masked_fill((labels == int(Label.PADDING))[..., None], 0.0)
        tokens = self._with_labels(position, labels)
        return tokens, self._dense(prompts, self._drawn_prompts(points, labels))

    def padded_points(
        self, prompts: Prompts
    ) -> tuple[Float[Tensor, "b q t 2"], Int64[Tensor, "b q t"]]:
        """Concatenate points and box corners and pad them to the model's minimum length.

        All padding lies at (-1, -1), whatever coordinates it was given.

        Raises:
            ValueError: More points than the model supports.
        """
        points, labels = prompts.points_px, prompts.labels
        if prompts.boxes_xyxy_px is not None:
            points = torch.cat([points, prompts.boxes_xyxy_px.unflatten(-1, (2, 2))], dim=2)
            top_left = torch.full_like(points[:, :, :1, 0], int(Label.TOP_LEFT), dtype=labels.dtype)
            bottom_right = torch.full_like(top_left, int(Label.BOTTOM_RIGHT))
            labels = torch.cat([labels, top_left, bottom_right], dim=2)
        count, limit = labels.shape[-1], self.config.max_points
        if limit is not None and count > limit:
            raise ValueError(
                f"{count} points in a prompt (a box counts as two), but this model takes at most "
                f"{limit}"
            )
        padding = max(self.config.padded_length() - count, 0)
        if limit is None and prompts.boxes_xyxy_px is None and count > 0:
            padding = 1  # SAM pads points without a box by one; a mask alone has no token
        points = F.pad(points, (0, 0, 0, padding), value=-1.0)
        labels = F.pad(labels, (0, padding), value=int(Label.PADDING))
        return points.masked_fill((labels == int(Label.PADDING))[..., None], -1.0), labels

    def unused_modules(self, labels: Iterable[Label], mask_logits: bool) -> list[str]:
        """List the modules that prompts of these labels, with or without masks, do not use."""
        used = {Label.PADDING, *labels}
        vectors = [
            f"label_vectors.{label.name.lower()}"
            for label in Label
            if label not in used and label.name.lower() in self.label_vectors
        ]
        idle_masks = self.mask_downscaling is not None and not mask_logits
        return [*vectors, "mask_downscaling"] if idle_masks else vectors

    def dense_position(self) -> Float[Tensor, "1 c g g"]:
        """Encode the position of every image token, as for the points."""
        return self.pe_layer.grid(self.grid_size)

    def _with_labels(
        self, position: Float[Tensor, "b q t c"], labels: Int64[Tensor, "b q t"]
    ) -> Float[Tensor, "b q t c"]:
        """Add each label's vector; a label that is not supported adds nothing.

        As sums of masked vectors, whose gradients are plain sums: those of an indexed table would
        be added in an arbitrary order on a GPU.
        """
        for label in Label:
            name = label.name.lower()
            if name in self.label_vectors:
                vector = cast(nn.Embedding, self.label_vectors[name]).weight[0]
                position = position + (labels == int(label))[..., None] * vector
        return position

    def _drawn_prompts(
        self, points: Float[Tensor, "b q t 2"], labels: Int64[Tensor, "b q t"]
    ) -> Float[Tensor, "b q c gh gw"] | None:
        if self.map_downscaling is None:
            return None
        maps = draw_prompts(points, labels, self.image_size, LOGITS_PER_TOKEN * self.grid_size)
        maps = maps.to(cast(nn.Embedding, self.label_vectors["positive"]).weight.dtype)
        drawn: Tensor = downscale(self.map_downscaling, maps.flatten(0, 1)).unflatten(
            0, labels.shape[:2]
        )
        return drawn

    def _dense(
        self, prompts: Prompts, drawn: Float[Tensor, "b q c gh gw"] | None
    ) -> Float[Tensor, "b2 q2 c dh dw"] | None:
        if self.mask_downscaling is None or self.no_mask_embed is None:
            if prompts.mask_logits is not None:
                raise ValueError("this model takes no mask prompts")
            return drawn
        if prompts.mask_logits is None:
            dense: Tensor = self.no_mask_embed.weight[None, None, 0, :, None, None]
        else:
            masks = prompts.mask_logits.to(self.no_mask_embed.weight.dtype).flatten(0, 1)[:, None]
            dense = downscale(self.mask_downscaling, masks).unflatten(
                0, prompts.mask_logits.shape[:2]
            )
        return dense if drawn is None else dense + drawn
