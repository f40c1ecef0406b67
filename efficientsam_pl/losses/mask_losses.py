"""Losses of predicted masks: focal, dice, and the error of the predicted IoU.

A further term is a field of `MaskLosses`, its value in `pixel_losses` (of each pixel) or `_terms`
(of anything else), and its weight in `MaskLossConfig`, all under one name.

Axes: b images, q prompts an image, k candidates a prompt, h w pixels of the loss resolution, n of
them all or some.
"""

from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from efficientsam_pl.losses.config import MaskLossConfig
from efficientsam_pl.losses.point_sampling import sampled_cells
from efficientsam_pl.losses.terms import LossTerms
from efficientsam_pl.mask_overlap import mask_iou
from efficientsam_pl.structures import Prediction


@dataclass(frozen=True)
class MaskLosses(LossTerms):
    """Terms of the loss, each mask's or summed over masks; the total weighs them by the config."""

    focal: Float[Tensor, "*shape"]
    dice: Float[Tensor, "*shape"]
    iou: Float[Tensor, "*shape"]
    single: Float[Tensor, "*shape"]  # of token 0, the weighted sum of the same terms

    def summed(self, valid: Bool[Tensor, "b q"]) -> "MaskLosses":
        """Sum over the valid masks; 0, with a gradient of 0, where none is valid."""
        return MaskLosses.from_stacked(torch.where(valid, self.stacked(), 0.0).flatten(1).sum(1))


def segmentation_losses(
    prediction: Prediction,
    target: Bool[Tensor, "b q h w"],
    config: MaskLossConfig,
    tokens: Literal["candidates", "single"] = "candidates",
    sample_key: Int64[Tensor, "b q"] | None = None,
) -> MaskLosses:
    """Compute each mask's losses (SAM, section 3 and appendix A).

    candidates: only the candidate with the lowest loss is trained, and token 0 beside it with the
    weight `config.single_mask`. single: token 0 alone, as SAM does for prompts of several points.

    Args:
        prediction: All mask tokens, token 0 first.
        target: One mask a prompt, at the logits' resolution.
        config: Weights.
        tokens: Output tokens that are trained.
        sample_key: One key a mask, where the config samples points.

    Raises:
        ValueError: The config samples points, and there is no key to draw them from.
    """
    truth = target[:, :, None]
    pixels = _LossPixels.of(truth, config, sample_key)
    single = prediction.single()
    terms = _terms(single, single, truth, pixels)
    of_single = _weighted(terms, config)
    if tokens == "single":
        return MaskLosses(total=of_single, single=of_single, **terms)
    candidates = prediction.candidates()
    best = _take(candidates, _lowest_loss(candidates, pixels))
    rated = best if config.iou_candidates == "best" else candidates
    terms = _terms(best, rated, truth, pixels)
    total = _weighted(terms, config) + config.single_mask * of_single
    return MaskLosses(total=total, single=of_single, **terms)


def pixel_losses(
    logits: Float[Tensor, "*mask n"],
    target: Bool[Tensor, "*#mask n"],
    config: MaskLossConfig,
    pixels: int,
) -> dict[str, Float[Tensor, "*mask"]]:
    """Compute the terms that compare a mask with its target pixel by pixel, by name.

    Focal: cross-entropy in which pixels that are already right count little, mean over pixels.
    Dice: in [0, 1], 0 for a perfect match; one pixel of smoothing makes an empty prediction of an
    empty target score 0. Both are made of the probability given to the wrong class of each pixel,
    in float32: a bf16 sum over a mask drops pixels.

    Args:
        logits: Scores before the sigmoid, at n pixels.
        target: Ground truth; broadcasts over leading axes, so one target serves k candidates.
        config: `focal_alpha` is the weight of foreground pixels, 1 - alpha of background;
            `focal_gamma` sets how fast a right pixel's weight falls.
        pixels: Number in the whole mask, which the n represent in equal shares.

    Source:
        Lin et al. 2017 (RetinaNet), section 3, mean over pixels as in SAM 2's code; Milletari et
        al. 2016 (V-Net), section 3. SAM, appendix A, weighs them 20 to 1.
    """
    logits = logits.float()
    against = torch.where(target, -logits, logits)
    wrong = against.sigmoid()
    alpha = torch.where(target, config.focal_alpha, 1 - config.focal_alpha)
    focal = (wrong.pow(config.focal_gamma) * F.softplus(against) * alpha).mean(-1)
    weight = pixels / target.shape[-1]
    area = target.sum(-1)
    missed = (wrong * target).sum(-1)
    extra = wrong.sum(-1) - missed
    overlap, both = area - missed, 2 * area - missed + extra
    return {"focal": focal, "dice": 1 - (2 * weight * overlap + 1) / (weight * both + 1)}


@dataclass(frozen=True)
class _LossPixels:
    """The target's pixels that `pixel_losses` compares: all, or some of each mask."""

    config: MaskLossConfig
    truth: Bool[Tensor, "b q 1 n"]
    cells: Int64[Tensor, "b q 1 n"] | None
    pixels: int

    @staticmethod
    def of(
        truth: Bool[Tensor, "b q 1 h w"],
        config: MaskLossConfig,
        sample_key: Int64[Tensor, "b q"] | None,
    ) -> "_LossPixels":
        flat = truth.flatten(-2)
        if config.sampled_points is None:
            return _LossPixels(config, flat, None, flat.shape[-1])
        if sample_key is None:
            raise ValueError("sampled_points= needs a key a mask to draw them from")
        cells = sampled_cells(sample_key, config.sampled_points, truth.shape[-2:])[:, :, None]
        return _LossPixels(config, flat.gather(-1, cells), cells, flat.shape[-1])

    def losses(self, prediction: Prediction) -> dict[str, Float[Tensor, "b q k"]]:
        """`pixel_losses` of every mask of a prediction."""
        logits = prediction.low_res_logits.flatten(-2)
        if self.cells is not None:
            logits = logits.gather(-1, self.cells.expand(-1, -1, logits.shape[2], -1))
        return pixel_losses(logits, self.truth, self.config, self.pixels)


def _terms(
    trained: Prediction, rated: Prediction, truth: Bool[Tensor, "b q 1 h w"], pixels: _LossPixels
) -> dict[str, Float[Tensor, "b q"]]:
    """Every term but token 0's, by name: masks of `trained`, predicted IoUs of `rated`."""
    values = pixels.losses(trained) | {"iou": _iou_error(rated, truth)}
    return {n: v[..., 0] if v.shape[-1] == 1 else v.mean(-1) for n, v in values.items()}


def _weighted(
    terms: dict[str, Float[Tensor, "*shape"]], config: MaskLossConfig
) -> Float[Tensor, "*shape"]:
    """Sum of terms, each with the weight of its name."""
    total: Tensor = reduce(add, (getattr(config, n) * value for n, value in terms.items()))
    return total


@torch.no_grad()
def _lowest_loss(candidates: Prediction, pixels: _LossPixels) -> Int64[Tensor, "b q 1"]:
    """Index of the candidate to train; the others are spared a gradient."""
    return _weighted(pixels.losses(candidates), pixels.config).argmin(-1, keepdim=True)


def _take(candidates: Prediction, which: Int64[Tensor, "b q 1"]) -> Prediction:
    index = which[..., None, None].expand(-1, -1, -1, *candidates.low_res_logits.shape[-2:])
    return Prediction(candidates.low_res_logits.gather(2, index), candidates.iou.gather(2, which))


def _iou_error(prediction: Prediction, truth: Bool[Tensor, "b q 1 h w"]) -> Float[Tensor, "b q k"]:
    """Squared difference of the predicted IoU and that of the thresholded mask."""
    masks = prediction.low_res_logits.detach() > 0
    return (prediction.iou.float() - mask_iou(masks, truth)).square()
