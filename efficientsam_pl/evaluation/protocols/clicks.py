"""Clicks: uniform random ones, the centre, and corrections where the answer is wrong.

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
    instance_result,
)
from efficientsam_pl.evaluation.protocols.error_centers import (
    ErrorCenters,
    centre_clicks,
    point_from_error_center,
)
from efficientsam_pl.evaluation.training_protocols import drawn_clicks
from efficientsam_pl.keyed_random import sample_key
from efficientsam_pl.rle import Rle
from efficientsam_pl.structures import Instance, Label


@dataclass(frozen=True)
class RandomClicks:
    """So many uniform foreground pixels at once; the candidate expected to be best.

    Each pixel is drawn apart, so one may come twice. The draws are a function of seed, photo and
    annotation id: neither order nor ranks matter, and fewer clicks are the first of more.

    Source:
        EfficientSAM, table 3 ("1 click", "3 click").
    """

    count: int

    @property
    def name(self) -> str:
        """As in configs and results."""
        return f"click_random_{self.count}"

    def check(self, segmenter: PromptableModel) -> None:
        """Every segmenter knows clicks."""

    def ask(self, context: EvalContext, instances: Sequence[Instance]) -> list[InstanceResult]:
        """Asks for each instance."""
        found: list[InstanceResult] = []
        for part in context.parts(instances):
            truth = [one.mask for one in part]
            keys = [sample_key(context.seed, 0, f"{context.key}/{one.id}") for one in part]
            points = drawn_clicks(torch.tensor(keys), truth, self.count)
            found += _found_by(context, truth, torch.from_numpy(points))
        return found


@dataclass(frozen=True)
class CentreClick:
    """One click, farthest from the mask's edge; the candidate expected to be best.

    Source:
        SAM, 7.1 and appendix D.1: the default of its single point evaluation.
    """

    @property
    def name(self) -> str:
        """As in configs and results."""
        return "click_center"

    def check(self, segmenter: PromptableModel) -> None:
        """Every segmenter knows clicks."""

    def ask(self, context: EvalContext, instances: Sequence[Instance]) -> list[InstanceResult]:
        """Asks for each instance."""
        found: list[InstanceResult] = []
        for part in context.parts(instances):
            truth = [one.mask for one in part]
            found += _found_by(context, truth, _centres(truth))
        return found


@dataclass(frozen=True)
class IterativeClicks:
    """The centre first, then one click at a time where the answer is wrong.

    The next click is the pixel farthest from the edge of the larger error region: of what is
    missing (positive) or of what is too much (negative), whichever reaches farther; of equals the
    negative one. Where the segmenter takes masks, its answer is fed back, and from the second
    click on its mask 0, meant for clear prompts, answers if it has one (first_candidate is 1);
    otherwise the candidate expected to be best. A found mask without any error is left as it is.

    Source:
        SAM, 7.1 and appendix D.1 (points are chosen as by RITM, Sofiiuk et al. 2022); ties as in
        SAM 2's code.
    """

    count: int

    @property
    def name(self) -> str:
        """As in configs and results."""
        return f"click_iterative_{self.count}"

    def check(self, segmenter: PromptableModel) -> None:
        """Refuses a segmenter without negative clicks.

        Raises:
            UserError: If it knows none and there is more than one click.
        """
        if self.count > 1 and not segmenter.negative_clicks:
            raise UserError(
                f"protocol {self.name} needs a model with negative clicks, which this one lacks; "
                f"click_random_{self.count} does not"
            )

    def ask(self, context: EvalContext, instances: Sequence[Instance]) -> list[InstanceResult]:
        """Asks for each instance, once a click."""
        self.check(context.segmenter)
        found: list[InstanceResult] = []
        for part in context.parts(instances):
            found += self._part([one.mask for one in part], context)
        return found

    def _part(self, truth: Sequence[Rle], context: EvalContext) -> list[InstanceResult]:
        found: dict[int, InstanceResult] = {}
        places = list(range(len(truth)))  # of those that are still asked for
        prompts = _positive(_centres(truth))
        for number in range(1, self.count + 1):
            wanted = [truth[place] for place in places]
            answers = context.about(wanted).ask(prompts)
            chosen = _chosen(answers, context.segmenter, number)
            if number == self.count:
                found |= dict(zip(places, instance_result(answers, chosen, wanted), strict=True))
                break
            masks = answers.masks(chosen)
            clicks = point_from_error_center(wanted, masks)
            for i in np.flatnonzero(~clicks.wrong).tolist():
                score = float(answers.iou[i, chosen[i]])
                found[places[i]] = InstanceResult(masks[i], iou=1.0, best_iou=1.0, score=score)
            places = [place for place, wrong in zip(places, clicks.wrong, strict=True) if wrong]
            if not places:
                break
            logits = answers.logits(chosen) if context.segmenter.mask_prompts else None
            prompts = _corrected(prompts, clicks, logits)
        return [found[place] for place in range(len(truth))]


def _corrected(
    prompts: ImagePrompts, clicks: ErrorCenters, logits: Float[Tensor, "q mh mw"] | None
) -> ImagePrompts:
    """One click more for each prompt whose answer is wrong; the others are left out."""
    labels = torch.from_numpy(clicks.missing).long()  # NEGATIVE is 0, POSITIVE is 1
    points = torch.from_numpy(clicks.points_xy).float()
    wrong = torch.from_numpy(clicks.wrong)
    return ImagePrompts(
        torch.cat([prompts.points_xy, points[:, None]], dim=1)[wrong],
        torch.cat([prompts.labels, labels[:, None]], dim=1)[wrong],
        mask_logits=None if logits is None else logits[wrong.to(logits.device)],
    )


def _chosen(answers: MaskCandidates, segmenter: PromptableModel, number: int) -> Int64[Tensor, "q"]:
    if number > 1 and segmenter.mask_prompts and answers.first_candidate == 1:
        return torch.zeros(len(answers.iou), dtype=torch.long)
    return best_candidate(answers)


def _centres(truth: Sequence[Rle]) -> Float[Tensor, "q 1 2"]:
    return torch.from_numpy(centre_clicks(truth)).float()[:, None]


def _positive(points: Float[Tensor, "q n 2"]) -> ImagePrompts:
    return ImagePrompts(points, torch.full(points.shape[:2], int(Label.POSITIVE)))


def _found_by(
    context: EvalContext, truth: Sequence[Rle], points: Float[Tensor, "q n 2"]
) -> list[InstanceResult]:
    answers = context.about(truth).ask(_positive(points))
    return instance_result(answers, best_candidate(answers), truth)
