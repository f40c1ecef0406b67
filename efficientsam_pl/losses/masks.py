"""Losses of predicted masks: focal, dice, and the error of the predicted IoU.

Axes: b photos, q prompts a photo, k candidates a prompt, h w pixels of the loss resolution.
"""

from dataclasses import dataclass

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
    """The parts of the loss, each a mean over the valid masks, and their weighted sum."""

    total: Float[Tensor, ""]
    focal: Float[Tensor, ""]
    dice: Float[Tensor, ""]
    iou: Float[Tensor, ""]
    single: Float[Tensor, ""]

    def named(self, prefix: str) -> dict[str, Tensor]:
        """For the log."""
        return {f"{prefix}{name}": value.detach() for name, value in vars(self).items()}


def segmentation_losses(
    prediction: Prediction,
    target: Bool[Tensor, "b q h w"],
    valid: Bool[Tensor, "b q"],
    config: MaskLossConfig,
) -> MaskLosses:
    """Only the best candidate of a prompt learns its mask (SAM, section 3 and appendix A).

    Args:
        prediction: All mask tokens, token 0 first.
        target: One mask a prompt, at the logits' resolution.
        valid: Which prompts are real.
        config: Weights.
    """
    truth = target[:, :, None]
    candidates, single = prediction.candidates(), prediction.single()
    focal, dice = _focal_and_dice(candidates, truth, config)
    best = (config.focal * focal + config.dice * dice).detach().argmin(-1, keepdim=True)
    iou_error = (candidates.iou.float() - actual_iou(candidates.low_res_logits, truth)).square()
    iou_error = iou_error.gather(-1, best) if config.iou_candidates == "best" else iou_error
    single_focal, single_dice = _focal_and_dice(single, truth, config)
    single_iou = (single.iou.float() - actual_iou(single.low_res_logits, truth)).square()
    single_loss = config.focal * single_focal + config.dice * single_dice + config.iou * single_iou

    def mean(per_mask: Float[Tensor, "b q k"]) -> Float[Tensor, ""]:
        return torch.where(valid, per_mask.mean(-1), 0.0).sum() / valid.sum().clamp(min=1)

    parts = (mean(focal.gather(-1, best)), mean(dice.gather(-1, best)), mean(iou_error))
    single_mean = mean(single_loss)
    weights = (config.focal, config.dice, config.iou)
    total = sum(w * p for w, p in zip(weights, parts, strict=True))
    return MaskLosses(total + config.single_mask * single_mean, *parts, single_mean)


def _focal_and_dice(
    prediction: Prediction, truth: Bool[Tensor, "b q 1 h w"], config: MaskLossConfig
) -> tuple[Float[Tensor, "b q k"], Float[Tensor, "b q k"]]:
    logits = prediction.low_res_logits
    focal = focal_loss(logits, truth, config.focal_alpha, config.focal_gamma)
    return focal, dice_loss(logits, truth)
