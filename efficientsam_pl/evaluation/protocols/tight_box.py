"""`box`: the tight ground-truth box is the prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from efficientsam_pl.evaluation.interfaces import ImagePrompts, PromptableModel
from efficientsam_pl.evaluation.protocols.base import (
    EvalContext,
    InstanceResult,
    best_candidate,
    instance_results,
)
from efficientsam_pl.records import Instance
from efficientsam_pl.rle import boxes_xyxy


class TightBox:
    """The box through the outermost pixels of the true mask; the highest predicted IoU.

    Source:
        EfficientSAM, table 3 ("box").
    """

    @property
    def name(self) -> str:
        """Name in configs and results."""
        return "box"

    def check(self, model: PromptableModel) -> None:
        """Accept every model: all of them know boxes."""

    def predict(self, context: EvalContext, instances: Sequence[Instance]) -> list[InstanceResult]:
        """Predict each instance from its box."""
        results: list[InstanceResult] = []
        for chunk in context.chunks(instances):
            truth = [instance.mask for instance in chunk]
            candidates = context.image_for(truth).predict(box_prompts(boxes_xyxy(truth)))
            chosen = best_candidate(candidates)
            results += instance_results(candidates, chosen, truth, context.oracle)
        return results


def box_prompts(boxes: object, mask_logits: torch.Tensor | None = None) -> ImagePrompts:
    """Prompt with one box each [q, 4], without clicks."""
    corners = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    none = torch.zeros(len(corners), 0, 2)
    return ImagePrompts(none, none[..., 0].long(), corners, mask_logits)
