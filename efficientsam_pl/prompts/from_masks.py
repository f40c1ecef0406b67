"""Prompts made from ground truth: a jittered box or some clicks for each mask.

Axes: b photos, q masks a photo, p point slots a prompt.
"""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from efficientsam_pl.draws import uniform
from efficientsam_pl.prompts.config import PromptingConfig
from efficientsam_pl.structures import Label, MaskBatch, Prompts


class MixedPrompter:
    """Boxes and clicks in one batch, each mask's kind drawn from the sample's key.

    A box is written as two labelled corners, so that both kinds fit one tensor.
    """

    def __init__(self, config: PromptingConfig) -> None:
        self.config = config

    def __call__(self, batch: MaskBatch) -> Prompts:
        """Prompts in model pixels, as many slots as the longer kind needs."""
        q = batch.valid.shape[1]
        slots = max(self.config.max_clicks, 2)
        kind, count = uniform(batch.draw_key, 2 * q, "prompt-kind").unflatten(1, (2, q)).unbind(1)
        is_box = (kind < self.config.box_share)[..., None]
        clicks = 1 + (count * self.config.max_clicks).long()
        slot = torch.arange(slots, device=clicks.device)
        click_points = _widened(batch.clicks_px, slots)
        click_labels = torch.where(slot < clicks[..., None], Label.POSITIVE, Label.PADDING)
        box_points = _widened(self._jittered(batch).unflatten(-1, (2, 2)), slots)
        box_labels = torch.full_like(click_labels, Label.PADDING)
        box_labels[..., :2] = slot.new_tensor([Label.TOP_LEFT, Label.BOTTOM_RIGHT])
        labels = torch.where(is_box, box_labels, click_labels)
        points = torch.where(is_box[..., None], box_points, click_points)
        return Prompts(torch.where((labels == Label.PADDING)[..., None], -1.0, points), labels)

    def _jittered(self, batch: MaskBatch) -> Float[Tensor, "b q 4"]:
        noise = _normal(batch.draw_key, batch.boxes_xyxy_px.shape[1] * 4).unflatten(1, (-1, 4))
        return jitter_boxes(
            batch.boxes_xyxy_px,
            noise,
            self.config.box_jitter,
            self.config.box_jitter_max_px,
            batch.image.shape[-1],
        )


def jitter_boxes(
    boxes_xyxy_px: Float[Tensor, "*q 4"],
    noise: Float[Tensor, "*q 4"],
    share: float,
    most_px: float,
    side: int,
) -> Float[Tensor, "*q 4"]:
    """Each side moved by normal noise (SAM, appendix A).

    Args:
        boxes_xyxy_px: Tight boxes in model pixels.
        noise: Standard normal numbers, one a side.
        share: Standard deviation over the box's length along that axis.
        most_px: No side moves further.
        side: The model's square; boxes stay within it.
    """
    width_height = boxes_xyxy_px[..., 2:] - boxes_xyxy_px[..., :2] + 1
    deviation = share * torch.cat([width_height, width_height], dim=-1)
    moved = boxes_xyxy_px + (noise * deviation).clamp(-most_px, most_px)
    x0, y0, x1, y1 = moved.clamp(0, side - 1).unbind(-1)
    return torch.stack([x0.minimum(x1), y0.minimum(y1), x0.maximum(x1), y0.maximum(y1)], dim=-1)


def _widened(points: Float[Tensor, "b q p 2"], slots: int) -> Float[Tensor, "b q slots 2"]:
    missing = slots - points.shape[2]
    if missing <= 0:
        return points[:, :, :slots]
    return torch.nn.functional.pad(points, (0, 0, 0, missing), value=-1.0)


def _normal(key: Int64[Tensor, "b"], count: int) -> Float[Tensor, "b {count}"]:
    """Box and Muller: two uniform numbers make a normal one."""
    radius, angle = uniform(key, 2 * count, "box-jitter").chunk(2, dim=1)
    return (-2 * (1 - radius).log()).sqrt() * (2 * math.pi * angle).cos()
