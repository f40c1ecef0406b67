"""Losses of predicted masks: focal, dice, and the error of the predicted IoU.

Axes: b photos, q prompts a photo, k candidates a prompt, h w pixels of the loss resolution.
"""

from dataclasses import dataclass, fields
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float
from torch import Tensor

from efficientsam_pl.losses.config import MaskLossConfig
from efficientsam_pl.structures import Prediction


def focal_loss(
    logits: Float[Tensor, "*mask h w"],
    target: Bool[Tensor, "*#mask h w"],
    alpha: float,
    gamma: float,
) -> Float[Tensor, "*mask"]:
    """Cross-entropy in which pixels that are already right count little, mean over pixels.

    Args:
        logits: Scores before the sigmoid, at the target's resolution.
        target: Ground truth; broadcasts over leading axes.
        alpha: Weight of foreground pixels, 1 - alpha of background.
        gamma: How fast a right pixel's weight falls.

    Source:
        Lin et al. 2017 (RetinaNet), section 3; mean over pixels as in SAM 2's code.
    """
    logits = logits.float()
    truth = target.to(logits.dtype).expand_as(logits)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    right = torch.exp(-cross_entropy)  # the probability given to the truth
    weight = truth * alpha + (1 - truth) * (1 - alpha)
    return (weight * (1 - right) ** gamma * cross_entropy).flatten(-2).mean(-1)


def dice_loss(
    logits: Float[Tensor, "*mask h w"], target: Bool[Tensor, "*#mask h w"]
) -> Float[Tensor, "*mask"]:
    """How little each soft mask overlaps its target.

    Args:
        logits: Scores before the sigmoid, at the target's resolution.
        target: Ground truth; broadcasts over leading axes, so one target serves k candidates.

    Returns:
        One value in [0, 1] per mask, 0 for a perfect match. One pixel of smoothing makes an
        empty prediction of an empty target score 0.

    Source:
        Milletari et al. 2016 (V-Net), section 3; weight 1 beside focal 20 in SAM, appendix A.
    """
    probs = logits.float().sigmoid().flatten(-2)  # a bf16 sum over a mask drops pixels
    truth = target.flatten(-2).to(probs.dtype)
    overlap = (probs * truth).sum(-1)
    return 1 - (2 * overlap + 1) / (probs.sum(-1) + truth.sum(-1) + 1)


def actual_iou(
    logits: Float[Tensor, "*mask h w"], target: Bool[Tensor, "*#mask h w"]
) -> Float[Tensor, "*mask"]:
    """IoU of the thresholded masks with their targets: what the IoU head should have said."""
    masks = logits.detach() > 0
    shared = (masks & target).flatten(-2).sum(-1)
    either = (masks | target).flatten(-2).sum(-1)
    return shared / either.clamp(min=1)


@dataclass(frozen=True)
class MaskLosses:
    """The parts of the loss and their weighted sum: of each mask, or summed over masks."""

    total: Float[Tensor, "*masks"]
    focal: Float[Tensor, "*masks"]
    dice: Float[Tensor, "*masks"]
    iou: Float[Tensor, "*masks"]
    single: Float[Tensor, "*masks"]  # of token 0, weighted as the total is

    def stacked(self) -> Float[Tensor, "parts *masks"]:
        """As one tensor, the total first; `MaskLosses(*tensor)` is the way back."""
        return torch.stack([getattr(self, field.name) for field in fields(self)])

    def summed(self, valid: Bool[Tensor, "b q"]) -> "MaskLosses":
        """Over the valid masks; 0, with a gradient of 0, where none is valid."""
        return MaskLosses(*torch.where(valid, self.stacked(), 0.0).flatten(1).sum(1))

    def parts(self, prefix: str) -> dict[str, Tensor]:
        """For the log, besides the total."""
        return {f"{prefix}{n}": v.detach() for n, v in vars(self).items() if n != "total"}


def segmentation_losses(
    prediction: Prediction,
    target: Bool[Tensor, "b q h w"],
    config: MaskLossConfig,
    answer: Literal["candidates", "single"] = "candidates",
) -> MaskLosses:
    """Of each mask: what is learned from an answer (SAM, section 3 and appendix A).

    candidates: only the best of the candidates learns its mask, and token 0 learns it beside them
    by `config.single_mask`. single: token 0 alone, as SAM does for prompts of several points.

    Args:
        prediction: All mask tokens, token 0 first.
        target: One mask a prompt, at the logits' resolution.
        config: Weights.
        answer: Which tokens answer.
    """
    truth = target[:, :, None]
    single = prediction.single()
    focal, dice = _focal_and_dice(single, truth, config)
    iou_error = _iou_error(single, truth)
    parts = (focal[..., 0], dice[..., 0], iou_error[..., 0])
    alone = _weighted(parts, config)
    if answer == "single":
        return MaskLosses(alone, *parts, alone)
    candidates = prediction.candidates()
    focal, dice = _focal_and_dice(candidates, truth, config)
    best = (config.focal * focal + config.dice * dice).detach().argmin(-1, keepdim=True)
    iou_error = _iou_error(candidates, truth)
    iou_error = iou_error.gather(-1, best) if config.iou_candidates == "best" else iou_error
    parts = (focal.gather(-1, best)[..., 0], dice.gather(-1, best)[..., 0], iou_error.mean(-1))
    return MaskLosses(_weighted(parts, config) + config.single_mask * alone, *parts, alone)


def _weighted(
    parts: tuple[Float[Tensor, "b q"], Float[Tensor, "b q"], Float[Tensor, "b q"]],
    config: MaskLossConfig,
) -> Float[Tensor, "b q"]:
    focal, dice, iou = parts
    return config.focal * focal + config.dice * dice + config.iou * iou


def _iou_error(prediction: Prediction, truth: Bool[Tensor, "b q 1 h w"]) -> Float[Tensor, "b q k"]:
    return (prediction.iou.float() - actual_iou(prediction.low_res_logits, truth)).square()


def _focal_and_dice(
    prediction: Prediction, truth: Bool[Tensor, "b q 1 h w"], config: MaskLossConfig
) -> tuple[Float[Tensor, "b q k"], Float[Tensor, "b q k"]]:
    logits = prediction.low_res_logits
    focal = focal_loss(logits, truth, config.focal_alpha, config.focal_gamma)
    return focal, dice_loss(logits, truth)
