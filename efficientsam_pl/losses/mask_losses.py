"""Losses of predicted masks: focal, dice, and the error of the predicted IoU.

Axes: b photos, q prompts a photo, k candidates a prompt, h w pixels of the loss resolution, n of
them all or some.
"""

from dataclasses import dataclass, fields
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from efficientsam_pl.losses.config import MaskLossConfig
from efficientsam_pl.losses.point_sampling import sampled_cells
from efficientsam_pl.mask_overlap import mask_iou
from efficientsam_pl.structures import Prediction


def focal_and_dice(
    logits: Float[Tensor, "*mask n"],
    target: Bool[Tensor, "*#mask n"],
    config: MaskLossConfig,
    pixels: int,
) -> tuple[Float[Tensor, "*mask"], Float[Tensor, "*mask"]]:
    """How badly a mask's pixels are told, and how little it overlaps its target.

    Focal: cross-entropy in which pixels that are already right count little, mean over pixels.
    Dice: in [0, 1], 0 for a perfect match; one pixel of smoothing makes an empty prediction of an
    empty target score 0. Both are made of the probability given to what is wrong at each pixel,
    in float32: a bf16 sum over a mask drops pixels.

    Args:
        logits: Scores before the sigmoid, at n pixels.
        target: Ground truth; broadcasts over leading axes, so one target serves k candidates.
        config: `focal_alpha` is the weight of foreground pixels, 1 - alpha of background;
            `focal_gamma` says how fast a right pixel's weight falls.
        pixels: Of the whole mask, for which the n stand alike.

    Source:
        Lin et al. 2017 (RetinaNet), section 3, mean over pixels as in SAM 2's code; Milletari et
        al. 2016 (V-Net), section 3. SAM, appendix A, weighs them 20 to 1.
    """
    logits = logits.float()
    against = torch.where(target, -logits, logits)
    wrong = against.sigmoid()
    alpha = torch.where(target, config.focal_alpha, 1 - config.focal_alpha)
    focal = (wrong.pow(config.focal_gamma) * F.softplus(against) * alpha).mean(-1)
    each = pixels / target.shape[-1]
    wanted = target.sum(-1)
    missed = (wrong * target).sum(-1)
    extra = wrong.sum(-1) - missed
    overlap, either = wanted - missed, 2 * wanted - missed + extra
    return focal, 1 - (2 * each * overlap + 1) / (each * either + 1)


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
    sample_key: Int64[Tensor, "b q"] | None = None,
) -> MaskLosses:
    """Of each mask: what is learned from an answer (SAM, section 3 and appendix A).

    candidates: only the best of the candidates learns its mask, and token 0 learns it beside them
    by `config.single_mask`. single: token 0 alone, as SAM does for prompts of several points.

    Args:
        prediction: All mask tokens, token 0 first.
        target: One mask a prompt, at the logits' resolution.
        config: Weights.
        answer: Which tokens answer.
        draw_key: One key a mask, where the config samples points.

    Raises:
        ValueError: The config samples points, and there is no key to draw them from.
    """
    truth = target[:, :, None]
    seen = _Seen.of(truth, config, sample_key)
    single = prediction.single()
    focal, dice = seen.losses(single)
    parts = (focal[..., 0], dice[..., 0], _iou_error(single, truth)[..., 0])
    alone = _weighted(parts, config)
    if answer == "single":
        return MaskLosses(alone, *parts, alone)
    candidates = prediction.candidates()
    best = _best(candidates, seen)
    focal, dice = seen.losses(_taken(candidates, best))
    iou_error = _iou_error(candidates, truth)
    iou_error = iou_error.gather(-1, best) if config.iou_candidates == "best" else iou_error
    parts = (focal[..., 0], dice[..., 0], iou_error.mean(-1))
    return MaskLosses(_weighted(parts, config) + config.single_mask * alone, *parts, alone)


@dataclass(frozen=True)
class _Seen:
    """The target's pixels that focal and dice are made of: all, or some of each mask."""

    config: MaskLossConfig
    truth: Bool[Tensor, "b q 1 n"]
    cells: Int64[Tensor, "b q 1 n"] | None
    pixels: int

    @staticmethod
    def of(
        truth: Bool[Tensor, "b q 1 h w"],
        config: MaskLossConfig,
        sample_key: Int64[Tensor, "b q"] | None,
    ) -> "_Seen":
        flat = truth.flatten(-2)
        if config.sampled_points is None:
            return _Seen(config, flat, None, flat.shape[-1])
        if sample_key is None:
            raise ValueError("sampled_points= needs a key a mask to draw them from")
        cells = sampled_cells(sample_key, config.sampled_points, truth.shape[-2:])[:, :, None]
        return _Seen(config, flat.gather(-1, cells), cells, flat.shape[-1])

    def losses(
        self, prediction: Prediction
    ) -> tuple[Float[Tensor, "b q k"], Float[Tensor, "b q k"]]:
        """Focal and dice of every mask of a prediction."""
        logits = prediction.low_res_logits.flatten(-2)
        if self.cells is not None:
            logits = logits.gather(-1, self.cells.expand(-1, -1, logits.shape[2], -1))
        return focal_and_dice(logits, self.truth, self.config, self.pixels)


@torch.no_grad()
def _best(candidates: Prediction, seen: _Seen) -> Int64[Tensor, "b q 1"]:
    """The candidate of the lowest loss; it alone is differentiated, which spares the others'."""
    focal, dice = seen.losses(candidates)
    return (seen.config.focal * focal + seen.config.dice * dice).argmin(-1, keepdim=True)


def _taken(candidates: Prediction, which: Int64[Tensor, "b q 1"]) -> Prediction:
    where = which[..., None, None].expand(-1, -1, -1, *candidates.low_res_logits.shape[-2:])
    return Prediction(candidates.low_res_logits.gather(2, where), candidates.iou.gather(2, which))


def _weighted(
    parts: tuple[Float[Tensor, "b q"], Float[Tensor, "b q"], Float[Tensor, "b q"]],
    config: MaskLossConfig,
) -> Float[Tensor, "b q"]:
    focal, dice, iou = parts
    return config.focal * focal + config.dice * dice + config.iou * iou


def _iou_error(prediction: Prediction, truth: Bool[Tensor, "b q 1 h w"]) -> Float[Tensor, "b q k"]:
    """How far the predicted IoU is from that of the thresholded mask."""
    masks = prediction.low_res_logits.detach() > 0
    return (prediction.iou.float() - mask_iou(masks, truth)).square()
