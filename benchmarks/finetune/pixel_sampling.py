"""Measure the error of a mask's loss on sampled pixels, and the time that sampling saves.

The masks are those of COCO-MINI (EFFICIENTSAM_SHARED/data). Predictions are derived from them:
blurred to 64 x 64 tokens, with noise at the scale of object parts. The loss of one token, focal 20
and dice 1, is compared with the same loss on all pixels: per mask, and of a step's mean over 64
masks. The gradient is compared at the tokens, where it enters the network; at the pixels most of it
is zero by construction.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from benchmarks.harness import Options, Row, alternate, parse_options, report
from efficientsam_pl.data.packing.coco import coco_images, read_coco
from efficientsam_pl.geometry import Resize
from efficientsam_pl.keyed_random import sample_key
from efficientsam_pl.losses.config import MaskLossConfig
from efficientsam_pl.losses.mask_losses import MaskLosses, segmentation_losses
from efficientsam_pl.mask_coverage import half_covered
from efficientsam_pl.rle import run_lengths
from efficientsam_pl.structures import Prediction

SIDES = (16, 32, 48, 64, 80, 112)  # of the grid of points
CELLS, TOKENS = 256, 64  # a side: the loss resolution and the image tokens of 1024 pixels
_TOGETHER = 64  # masks per step
_LOSS = MaskLossConfig(iou=0.0)


@dataclass(frozen=True)
class MaskPredictions:
    """Masks, and a map of tokens per mask, whose enlargement is the predicted logits."""

    truth: Bool[Tensor, "1 q h w"]
    tokens: Float[Tensor, "1 q t t"]

    def losses(self, side: int | None, draw: int) -> MaskLosses:
        """Compute losses on `side` squared sampled pixels of each mask, or on all pixels."""
        config = replace(_LOSS, sampled_points=None if side is None else side**2)
        logits = F.interpolate(self.tokens, (CELLS, CELLS), mode="bilinear")[:, :, None]
        unknown = logits.new_zeros(logits.shape[:3])
        return segmentation_losses(
            Prediction(logits, unknown), self.truth, config, "single", self._keys(draw)
        )

    def _keys(self, draw: int) -> Int64[Tensor, "1 q"]:
        return torch.tensor([[sample_key(0, draw, str(q)) for q in range(self.truth.shape[1])]])


def rows(options: Options) -> list[Row]:
    """Measure error and gradient for each number of points, then time."""
    predictions = noisy(truth(limit=128 if options.quick else 512))
    return [
        *errors(predictions, draws=2 if options.quick else 8),
        *times(2 if options.quick else 9),
    ]


def truth(limit: int) -> Bool[Tensor, "1 q h w"]:
    """Load masks at the loss resolution, in the released model's square."""
    folder = Path(os.environ["EFFICIENTSAM_SHARED"]) / "data/coco/COCO-MINI"
    file = folder / "annotations/instances_val2017.json"
    entries = read_coco(str(file), str(folder / "val2017")).entries
    masks: list[Tensor] = []
    for photo in coco_images(entries, []):
        runs = run_lengths([a.rle for a in photo.annotations if not a.crowd and a.area > 0])
        grid = Resize.fit(photo.image.shape[:2], 4 * CELLS, "squash").mask_grid(CELLS)
        masks += torch.from_numpy(half_covered(runs, grid))
        if len(masks) >= limit:
            break
    return torch.stack(masks[:limit])[None]


def noisy(masks: Bool[Tensor, "1 q h w"]) -> MaskPredictions:
    """Make approximate predictions: coarse masks with surplus and missing parts."""
    blurred = F.interpolate(masks.float(), (TOKENS, TOKENS), mode="area")
    coarse = torch.randn(1, masks.shape[1], 10, 10, generator=torch.Generator().manual_seed(0))
    parts = F.interpolate(coarse, (TOKENS, TOKENS), mode="bicubic")
    return MaskPredictions(masks, (8 * (blurred - 0.5) + 2 * parts).requires_grad_())


def errors(predictions: MaskPredictions, draws: int) -> Iterator[Row]:
    """Measure errors for each number of points, over several samplings."""
    whole, gradient = _learned(predictions, None, 0)
    work = f"{len(whole)} masks of COCO-MINI, {draws} draws; from all {CELLS**2} pixels otherwise"
    for side in SIDES:
        of_mask, of_step, cosines = [], [], []
        for draw in range(draws):
            sampled, sampled_gradient = _learned(predictions, side, draw)
            of_mask.append(((sampled - whole) / whole).abs())
            of_step.append(_relative(sampled, whole))
            cosines.append(F.cosine_similarity(sampled_gradient, gradient))
        name = f"finetune_sampling.{side}x{side}"
        for what, values in (("mask", of_mask), ("step", of_step)):
            value = float(torch.stack(values).mean())
            description = f"mean absolute relative error of a {what}'s loss; {work}"
            yield Row(id=f"{name}.error_of_a_{what}", work=description, value=value, unit="")
        yield Row(
            id=f"{name}.gradient_cosine",
            work=f"cosine between a mask's gradients at the tokens; {work}",
            value=float(torch.stack(cosines).mean()),
            unit="",
            better="higher",
        )


def _learned(
    predictions: MaskPredictions, side: int | None, draw: int
) -> tuple[Float[Tensor, "q"], Float[Tensor, "q n"]]:
    losses = predictions.losses(side, draw).total[0]
    [gradient] = torch.autograd.grad(losses.sum(), predictions.tokens)
    return losses.detach(), gradient[0].flatten(1)


def _relative(sampled: Float[Tensor, "q"], whole: Float[Tensor, "q"]) -> Float[Tensor, "steps"]:
    """Relative errors of the means over the masks of each step."""
    means = [
        errors_of_masks.unfold(0, _TOGETHER, _TOGETHER).mean(1)
        for errors_of_masks in (sampled, whole)
    ]
    return ((means[0] - means[1]) / means[1]).abs()


def times(rounds: int) -> Iterator[Row]:
    """Time forward and backward of the losses of 32 masks with all their tokens."""
    draw = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(1, 32, 4, CELLS, CELLS, generator=draw)).requires_grad_()
    prediction = Prediction(logits, torch.zeros(1, 32, 4))
    masks = torch.rand(1, 32, CELLS, CELLS, generator=draw) < 0.3
    keys = torch.arange(32)[None]

    def learn(points: int | None) -> None:
        config = MaskLossConfig(sampled_points=points)
        losses = segmentation_losses(prediction, masks, config, sample_key=keys)
        torch.autograd.grad(losses.total.sum(), logits)

    variants = {"all": partial(learn, None)} | {
        f"{side}x{side}": partial(learn, side**2) for side in SIDES
    }
    learn(None)
    taken = alternate(variants, rounds)
    for side in SIDES:
        yield Row(
            id=f"finetune_sampling.{side}x{side}.time",
            work="losses of 32 masks, 4 tokens each, and their gradient; all pixels otherwise",
            value=taken[f"{side}x{side}"].wall,
            unit="s",
            reference=taken["all"].wall,
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report."""
    options = parse_options("finetune.pixel_sampling", (__doc__ or "").splitlines()[0], argv)
    report("finetune_sampling", rows(options), options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
