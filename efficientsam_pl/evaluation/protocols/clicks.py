"""Click protocols: uniform random clicks, the centre, and corrections of the error.

Axes: q instances, n clicks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from efficientsam_pl.errors import UserError
from efficientsam_pl.evaluation.interfaces import ImagePrompts, MaskCandidates, PromptableModel
from efficientsam_pl.evaluation.protocols.base import (
    EvalContext,
    InstanceResult,
    best_candidate,
    instance_results,
)
from efficientsam_pl.evaluation.protocols.error_centers import (
    ErrorCenters,
    centre_clicks,
    point_from_error_center,
)
from efficientsam_pl.keyed_random import sample_key, uniform
from efficientsam_pl.records import Instance
from efficientsam_pl.rle import Rle, foreground_points, foreground_runs, run_lengths
from efficientsam_pl.structures import Label


@dataclass(frozen=True)
class RandomClicks:
    """K uniform foreground pixels at once; the candidate with the highest predicted IoU.

    Pixels are drawn with replacement. The draws are a function of seed, image and annotation:
    neither order nor ranks matter, and fewer clicks are the first of more.

    Source:
        EfficientSAM, table 3 ("1 click", "3 click").
    """

    count: int

    @property
    def name(self) -> str:
        """Name in configs and results."""
        return f"click_random_{self.count}"

    def check(self, model: PromptableModel) -> None:
        """Accept every model: all of them know clicks."""

    def predict(self, context: EvalContext, instances: Sequence[Instance]) -> list[InstanceResult]:
        """Predict each instance from random clicks."""
        results: list[InstanceResult] = []
        for chunk in context.chunks(instances):
            truth = [instance.mask for instance in chunk]
            ids = [instance.id for instance in chunk]
            points = random_clicks(context.key, ids, truth, context.seed, self.count)
            results += _predict_clicks(context, truth, torch.from_numpy(points))
        return results


@dataclass(frozen=True)
class CentreClick:
    """One click, farthest from the mask's edge; the candidate with the highest predicted IoU.

    Source:
        SAM, 7.1 and appendix D.1: the default of its single point evaluation.
    """

    @property
    def name(self) -> str:
        """Name in configs and results."""
        return "click_center"

    def check(self, model: PromptableModel) -> None:
        """Accept every model: all of them know clicks."""

    def predict(self, context: EvalContext, instances: Sequence[Instance]) -> list[InstanceResult]:
        """Predict each instance from its centre."""
        results: list[InstanceResult] = []
        for chunk in context.chunks(instances):
            truth = [instance.mask for instance in chunk]
            results += _predict_clicks(context, truth, _centres(truth))
        return results


@dataclass(frozen=True)
class IterativeClicks:
    """The centre first, then one corrective click at a time.

    The next click is the pixel farthest from the edge of the larger error region: false negatives
    (a positive click) or false positives (a negative click), whichever is deeper; ties take the
    negative click. Where the model takes mask prompts, its prediction is fed back, and from the
    second click on its mask 0, meant for unambiguous prompts, counts if it has one
    (first_candidate is 1); otherwise the candidate with the highest predicted IoU. A prediction
    without any error is final.

    Source:
        SAM, 7.1 and appendix D.1 (points are chosen as by RITM, Sofiiuk et al. 2022); ties as in
        SAM 2's code.
    """

    count: int

    @property
    def name(self) -> str:
        """Name in configs and results."""
        return f"click_iterative_{self.count}"

    def check(self, model: PromptableModel) -> None:
        """Reject a model without negative clicks.

        Raises:
            UserError: The model accepts none, and there is more than one click.
        """
        if self.count > 1 and not model.negative_clicks:
            raise UserError(
                f"protocol {self.name} needs a model with negative clicks, which this one lacks; "
                f"click_random_{self.count} does not"
            )

    def predict(self, context: EvalContext, instances: Sequence[Instance]) -> list[InstanceResult]:
        """Predict each instance, once per click."""
        return self.predict_counts(context, instances, [self.count])[self.count]

    def predict_counts(
        self, context: EvalContext, instances: Sequence[Instance], counts: Sequence[int]
    ) -> dict[int, list[InstanceResult]]:
        """Predict each instance once per click, and score it after each number in `counts`.

        Args:
            context: The model and the image.
            instances: Instances to predict.
            counts: Numbers of clicks to score, at most `count`. Each gives the result of an
                `IterativeClicks` with this count.

        Raises:
            UserError: As `check`.
        """
        self.check(context.model)
        results: dict[int, list[InstanceResult]] = {count: [] for count in counts}
        for chunk in context.chunks(instances):
            truth = [instance.mask for instance in chunk]
            for count, scored in self._rounds(truth, context, counts).items():
                results[count] += scored
        return results

    def _rounds(
        self, truth: Sequence[Rle], context: EvalContext, counts: Sequence[int]
    ) -> dict[int, list[InstanceResult]]:
        results: dict[int, list[InstanceResult]] = {}
        latest: dict[int, InstanceResult] = {}
        places = list(range(len(truth)))  # of instances whose prediction has an error
        prompts = _positive(_centres(truth))
        for number in range(1, self.count + 1):
            if places:
                masks = [truth[place] for place in places]
                candidates = context.image_for(masks).predict(prompts)
                chosen = _chosen(candidates, context.model, number)
                scored = number in counts
                if scored:
                    current = instance_results(candidates, chosen, masks, context.oracle)
                    latest |= dict(zip(places, current, strict=True))
                    predicted = [result.mask for result in current]
                if number < self.count:
                    predicted = predicted if scored else candidates.masks(chosen)
                    clicks = point_from_error_center(masks, predicted)
                    final = _final_results(predicted, candidates, chosen, clicks, context.oracle)
                    latest |= {places[i]: result for i, result in final.items()}
                    places = [p for p, wrong in zip(places, clicks.wrong, strict=True) if wrong]
                    logits = candidates.logits(chosen) if context.model.mask_prompts else None
                    prompts = _corrected(prompts, clicks, logits)
            if number in counts:
                results[number] = [latest[place] for place in range(len(truth))]
        return results


def random_clicks(
    key: str, ids: Sequence[int], masks: Sequence[Rle], seed: int, count: int = 1
) -> Float[np.ndarray, "q n 2"]:
    """Draw uniform foreground pixels of each mask, (x, y), in image pixels.

    Args:
        key: Key of the image in its set.
        ids: Id of each mask in the image.
        masks: Masks, none of them empty.
        seed: Seed of the draws.
        count: Number of clicks per mask.
    """
    keys = torch.tensor([sample_key(seed, 0, f"{key}/{number}") for number in ids])
    shares = uniform(keys, count, "click1").double().numpy()
    runs = foreground_runs(run_lengths(masks))
    areas = np.bincount(runs.mask, runs.end - runs.begin)
    ranks = (shares * areas[:, None]).astype(np.int64)
    return foreground_points(runs, masks[0]["size"][0], ranks).astype(np.float32)


def _final_results(
    predicted: Sequence[Rle],
    candidates: MaskCandidates,
    chosen: Int64[Tensor, "q"],
    clicks: ErrorCenters,
    oracle: bool,
) -> dict[int, InstanceResult]:
    """Return the results of predictions without an error, by index."""
    return {
        i: InstanceResult(
            predicted[i],
            iou=1.0,
            best_iou=1.0 if oracle else None,
            score=float(candidates.iou[i, chosen[i]]),
        )
        for i in np.flatnonzero(~clicks.wrong).tolist()
    }


def _corrected(
    prompts: ImagePrompts, clicks: ErrorCenters, logits: Float[Tensor, "q mh mw"] | None
) -> ImagePrompts:
    """Add a click to each prompt whose prediction has an error, and drop the others."""
    labels = torch.from_numpy(clicks.missing).long()  # NEGATIVE is 0, POSITIVE is 1
    points = torch.from_numpy(clicks.points_xy).float()
    wrong = torch.from_numpy(clicks.wrong)
    return ImagePrompts(
        torch.cat([prompts.points_xy, points[:, None]], dim=1)[wrong],
        torch.cat([prompts.labels, labels[:, None]], dim=1)[wrong],
        mask_logits=None if logits is None else logits[wrong.to(logits.device)],
    )


def _chosen(candidates: MaskCandidates, model: PromptableModel, number: int) -> Int64[Tensor, "q"]:
    if number > 1 and model.mask_prompts and candidates.first_candidate == 1:
        return torch.zeros(len(candidates.iou), dtype=torch.long)
    return best_candidate(candidates)


def _centres(truth: Sequence[Rle]) -> Float[Tensor, "q 1 2"]:
    return torch.from_numpy(centre_clicks(truth)).float()[:, None]


def _positive(points: Float[Tensor, "q n 2"]) -> ImagePrompts:
    return ImagePrompts(points, torch.full(points.shape[:2], int(Label.POSITIVE)))


def _predict_clicks(
    context: EvalContext, truth: Sequence[Rle], points: Float[Tensor, "q n 2"]
) -> list[InstanceResult]:
    candidates = context.image_for(truth).predict(_positive(points))
    return instance_results(candidates, best_candidate(candidates), truth, context.oracle)
