"""`box`: the tight ground-truth box is the prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from efficientsam_pl.evaluation.interfaces import ImagePrompts, PromptableModel
from efficientsam_pl.evaluation.protocols.base import (
    EvalContext,
    InstanceResult,
    best_candidate,
    instance_result,
)
from efficientsam_pl.rle import boxes_xyxy
from efficientsam_pl.structures import Instance


class TightBox:
    """The box through the outermost pixels of the true mask; the candidate expected to be best.

    Source:
        EfficientSAM, table 3 ("box").
    """

    @property
    def name(self) -> str:
        """As in configs and results."""
        return "box"

    def check(self, segmenter: PromptableModel) -> None:
        """Every segmenter knows boxes."""

    def ask(self, context: EvalContext, instances: Sequence[Instance]) -> list[InstanceResult]:
        """Asks for each instance."""
        found: list[InstanceResult] = []
        for part in context.parts(instances):
            truth = [one.mask for one in part]
            answers = context.about(truth).ask(box_prompts(boxes_xyxy(truth)))
            found += instance_result(answers, best_candidate(answers), truth)
        return found


def box_prompts(boxes: object, mask_logits: torch.Tensor | None = None) -> ImagePrompts:
    """One box a prompt [q, 4], no clicks."""
    corners = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    none = torch.zeros(len(corners), 0, 2)
    return ImagePrompts(none, none[..., 0].long(), corners, mask_logits)
