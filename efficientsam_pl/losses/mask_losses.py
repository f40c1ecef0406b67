"""Losses of predicted masks: focal, dice, and the error of the predicted IoU.

A further term is a field of `MaskLosses`, its value in `pixel_losses` (of each pixel) or `_terms`
(of anything else), and its weight in `MaskLossConfig`, all under one name.

Every term is computed for all mask tokens at once, then the trained ones are chosen among numbers a
mask: compiled as a whole, the logits are read once, and once more with their gradient written.

Axes: b images, q masks an image, p prompts an image (one or more rounds of q), k mask tokens a
prompt, h w pixels of the loss resolution, n of them all or some.
"""

from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from efficientsam_pl.losses.config import MaskLossConfig
from efficientsam_pl.losses.pixel_sums import pixel_sums
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
    """Compute the losses of each prompt's mask (SAM, section 3 and appendix A).

    candidates: only the candidate with the lowest loss is trained, and token 0 beside it with the
    weight `config.single_mask`. single: token 0 alone, as SAM does for prompts of several points.

    Args:
        prediction: All mask tokens, token 0 first, of prompts for all masks, round after round.
        target: The masks, at the logits' resolution; those of every round.
        config: Weights.
        tokens: Output tokens that are trained.
        sample_key: One key a mask, where the config samples points.

    Returns:
        One value a prompt.

    Raises:
        ValueError: The config samples points, and there is no key to draw them from.
    """
    masks, count = target.shape[1], 1 if tokens == "single" else prediction.iou.shape[2]
    rounds = prediction.iou.shape[1] // max(1, masks)
    logits, iou = (
        values[:, :, :count].unflatten(1, (rounds, masks))
        for values in (prediction.low_res_logits, prediction.iou)
    )
    pixels, others = _terms(logits, iou, target[:, None, :, None], config, sample_key)
    losses = _trained(pixels, others, config, tokens)
    return MaskLosses(**{name: value.flatten(1, 2) for name, value in losses.items()})


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
    sums = pixel_sums(logits, target, config.focal_alpha, config.focal_gamma)
    count = target.shape[-1]
    weight, area = pixels / count, target.sum(-1)
    overlap, both = area - sums.missed, 2 * area - sums.missed + sums.extra
    dice = 1 - (2 * weight * overlap + 1) / (weight * both + 1)
    return {"focal": sums.focal / count, "dice": dice}


def _terms(
    logits: Float[Tensor, "b r q k h w"],
    iou: Float[Tensor, "b r q k"],
    truth: Bool[Tensor, "b 1 q 1 h w"],
    config: MaskLossConfig,
    sample_key: Int64[Tensor, "b q"] | None,
) -> tuple[dict[str, Float[Tensor, "b r q k"]], dict[str, Float[Tensor, "b r q k"]]]:
    """Every token's terms by name: those of pixels, which choose a candidate, and the others."""
    chosen, flat = logits.flatten(-2), truth.flatten(-2)
    pixels = flat.shape[-1]
    if config.sampled_points is not None:
        if sample_key is None:
            raise ValueError("sampled_points= needs a key a mask to draw them from")
        cells = sampled_cells(sample_key, config.sampled_points, truth.shape[-2:])
        cells = cells[:, None, :, None]
        chosen = chosen.gather(-1, cells.expand(*chosen.shape[:-1], -1))
        flat = flat.gather(-1, cells)
    return pixel_losses(chosen, flat, config, pixels), {"iou": _iou_error(logits, iou, truth)}


def _trained(
    pixels: dict[str, Float[Tensor, "*prompt k"]],
    others: dict[str, Float[Tensor, "*prompt k"]],
    config: MaskLossConfig,
    tokens: Literal["candidates", "single"],
) -> dict[str, Float[Tensor, "*prompt"]]:
    """Fields of `MaskLosses` of each prompt, from the terms of its tokens."""
    single = {name: value[..., 0] for name, value in (pixels | others).items()}
    of_single = _weighted(single, config)
    if tokens == "single":
        return {"total": of_single, "single": of_single, **single}
    candidates = {name: value[..., 1:] for name, value in (pixels | others).items()}
    chosen = _weighted({name: candidates[name] for name in pixels}, config)
    best = chosen.argmin(-1, keepdim=True)
    terms = {name: value.gather(-1, best)[..., 0] for name, value in candidates.items()}
    if config.iou_candidates == "all":
        terms |= {name: candidates[name].mean(-1) for name in others}
    total = _weighted(terms, config) + config.single_mask * of_single
    return {"total": total, "single": of_single, **terms}


def _weighted(
    terms: dict[str, Float[Tensor, "*shape"]], config: MaskLossConfig
) -> Float[Tensor, "*shape"]:
    """Sum of terms, each with the weight of its name."""
    total: Tensor = reduce(add, (getattr(config, name) * value for name, value in terms.items()))
    return total


def _iou_error(
    logits: Float[Tensor, "b r q k h w"],
    iou: Float[Tensor, "b r q k"],
    truth: Bool[Tensor, "b 1 q 1 h w"],
) -> Float[Tensor, "b r q k"]:
    """Squared difference of the predicted IoU and that of the thresholded mask."""
    return (iou.float() - mask_iou(logits.detach() > 0, truth)).square()
