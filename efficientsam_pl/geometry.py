"""Image pixels <-> model pixels, in one frozen record; no model input is scaled elsewhere.

There are two rules. `squash` (the released EfficientSAM): the image is stretched to the model's
square, with separate scales for x and y. `pad` (SAM): the longest side is scaled to the square's
side and the rest is padded on the right and at the bottom.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from efficientsam_pl.mask_coverage import Grid

ResizeRule = Literal["squash", "pad"]


@dataclass(frozen=True)
class Resize:
    """The resize of an image of `image_hw` pixels to a model's square of `side` pixels."""

    image_hw: tuple[int, int]
    content_hw: tuple[int, int]
    side: int
    rule: ResizeRule

    @staticmethod
    def fit(image_hw: tuple[int, int], side: int, rule: ResizeRule) -> Resize:
        """Compute the resize of an image of `image_hw` for a model of `side` pixels."""
        if rule == "squash":
            return Resize(image_hw, (side, side), side, rule)
        height, width = image_hw
        scale = side / max(height, width)
        content_hw = (max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5)))
        return Resize(image_hw, content_hw, side, rule)

    def scale_xy(self) -> tuple[float, float]:
        """Return model pixels per image pixel along x and y."""
        return self.content_hw[1] / self.image_hw[1], self.content_hw[0] / self.image_hw[0]

    def points_forward(self, points: Float[Tensor, "*p 2"]) -> Float[Tensor, "*p 2"]:
        """Scale image pixels to model pixels, without a half-pixel shift, as both releases do."""
        return points * points.new_tensor(self.scale_xy())

    def boxes_forward(self, boxes: Float[Tensor, "*q 4"]) -> Float[Tensor, "*q 4"]:
        """Scale corners (x0, y0, x1, y1) from image pixels to model pixels."""
        return boxes * boxes.new_tensor(self.scale_xy() * 2)

    def points_back(self, points: Float[Tensor, "*p 2"]) -> Float[Tensor, "*p 2"]:
        """Scale model pixels to image pixels, the inverse of `points_forward`."""
        return points / points.new_tensor(self.scale_xy())

    def boxes_back(self, boxes: Float[Tensor, "*q 4"]) -> Float[Tensor, "*q 4"]:
        """Scale model pixels to image pixels, the inverse of `boxes_forward`."""
        return boxes / boxes.new_tensor(self.scale_xy() * 2)

    def image_forward(self, image: UInt8[np.ndarray, "h w 3"]) -> Float[Tensor, "3 ch cw"]:
        """Resize the image to its size in the model, values 0..255, without the padding.

        squash: bilinear on floats without antialiasing (torch), as the released EfficientSAM.
        pad: bilinear on bytes with antialiasing (Pillow), as SAM.
        """
        if self.rule == "pad":
            size = (self.content_hw[1], self.content_hw[0])
            resized = np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
            return torch.from_numpy(resized).permute(2, 0, 1).float()
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
        if pixels.shape[-2:] != self.content_hw:
            pixels = F.interpolate(pixels, self.content_hw, mode="bilinear", align_corners=False)
        return pixels[0]

    def bytes_forward(self, pixels: UInt8[np.ndarray, "h w 3"]) -> UInt8[Tensor, "3 ch cw"]:
        """Resize as `image_forward`, but to bytes: ten times faster and within one level of it.

        The image may have been decoded at a smaller size than `image_hw`. The result is in
        channels-last memory format.
        """
        image = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
        if pixels.shape[:2] == self.content_hw:
            return image[0]
        smooth = self.rule == "pad"
        return F.interpolate(image, self.content_hw, mode="bilinear", antialias=smooth)[0]

    def mask_grid(self, cells: int, mirrored: bool = False) -> Grid:
        """Project a grid of `cells` x `cells` over the model's square onto the image."""
        across, down = (scale * cells / self.side for scale in self.scale_xy())
        return Grid(self.image_hw, (cells, cells), (down, across), mirrored)

    def masks_back(self, low_res: Float[Tensor, "q k mh mw"]) -> Float[Tensor, "q k h w"]:
        """Resize logits over the model's square to image size.

        squash: one bicubic resize. pad: bilinear to the square, crop the padding, bilinear to the
        image. Both as released.
        """
        if self.rule == "squash":
            return F.interpolate(low_res, self.image_hw, mode="bicubic", align_corners=False)
        square = F.interpolate(low_res, (self.side,) * 2, mode="bilinear", align_corners=False)
        content = square[..., : self.content_hw[0], : self.content_hw[1]]
        return F.interpolate(content, self.image_hw, mode="bilinear", align_corners=False)

    def mask_axes(self, cells: int) -> tuple[Float[Tensor, "h m"], Float[Tensor, "w m"]]:
        """Return `masks_back` as one matrix per axis, on the CPU.

        Logits at image size are `down @ low_res @ across.T`, up to rounding.

        Args:
            cells: Cells per side of the logits.
        """

        def axis(content: int, pixels: int) -> Float[Tensor, "p m"]:
            weights = torch.eye(cells)[None, None]
            if self.rule == "squash":
                return F.interpolate(weights, (pixels, cells), mode="bicubic")[0, 0]
            square = F.interpolate(weights, (self.side, cells), mode="bilinear")
            return F.interpolate(square[:, :, :content], (pixels, cells), mode="bilinear")[0, 0]

        down, across = map(axis, self.content_hw, self.image_hw)
        return down, across
