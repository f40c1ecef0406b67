"""What every protocol shares: who is asked about which photo, and what was found.

Axes: q prompts about one photo, k masks a prompt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from efficientsam_pl.evaluation.interfaces import MaskCandidates, PromptableImage, PromptableModel
from efficientsam_pl.rle import Rle, area, pair_iou
from efficientsam_pl.structures import Instance

T = TypeVar("T")
_PAIRS = 8  # masks that are compared at once: pycocotools compares each with each


@runtime_checkable
class GroundTruthModel(Protocol):
    """A photo of a baseline that answers with the truth, which nobody else is told."""

    def told(self, truth: Sequence[Rle]) -> PromptableImage:
        """The same photo when the next prompts are about these masks, one a prompt."""
        ...


@dataclass(frozen=True, kw_only=True)
class EvalContext:
    """Who is asked about which photo, and how.

    `at_once` prompts are asked together: it bounds memory and time, and changes no answer.
    """

    segmenter: PromptableModel
    photo: PromptableImage
    key: str  # of the photo in its set, such as its image id
    seed: int = 0
    at_once: int = 32

    def about(self, truth: Sequence[Rle]) -> PromptableImage:
        """The photo to ask next, about these masks."""
        return self.photo.told(truth) if isinstance(self.photo, GroundTruthModel) else self.photo

    def parts(self, things: Sequence[T]) -> Iterator[Sequence[T]]:
        """What is asked about, at most `at_once` of it together."""
        for first in range(0, len(things), self.at_once):
            yield things[first : first + self.at_once]


@dataclass(frozen=True)
class InstanceResult:
    """How one instance was found.

    `iou` is that of the mask that the protocol chose, without looking at the truth; `best_iou` is
    the oracle's, of the best among the candidates and the chosen one; `score` is the IoU that the
    segmenter expected of the chosen one.
    """

    mask: Rle
    iou: float
    best_iou: float
    score: float


@runtime_checkable
class InstanceProtocol(Protocol):
    """A named way to ask for annotated instances."""

    @property
    def name(self) -> str:
        """As in configs and results."""
        ...

    def check(self, segmenter: PromptableModel) -> None:
        """Refuses a segmenter that does not know such prompts.

        Raises:
            UserError: With the reason.
        """
        ...

    def ask(self, context: EvalContext, instances: Sequence[Instance]) -> list[InstanceResult]:
        """Asks for each of some `askable` instances of one photo; one answer each, in order.

        Raises:
            UserError: As `check`.
        """
        ...


def askable(instances: Sequence[Instance]) -> tuple[list[Instance], dict[str, int]]:
    """The instances that a prompt can mean, and how many were left out: "crowd", "zero_area".

    A crowd region is no one object. An instance without a pixel, or with a stated area of 0, has
    no place to click. A crowd without a pixel counts as a crowd.
    """
    kept: list[Instance] = []
    skipped: Counter[str] = Counter({"crowd": 0, "zero_area": 0})
    for one in instances:
        if one.crowd:
            skipped["crowd"] += 1
        elif one.area <= 0 or area(one.mask) == 0:
            skipped["zero_area"] += 1
        else:
            kept.append(one)
    return kept, dict(skipped)


def best_candidate(answers: MaskCandidates) -> Int64[Tensor, "q"]:
    """Of each prompt the candidate that is expected to be best; of equals the first."""
    return answers.first_candidate + answers.iou[:, answers.first_candidate :].argmax(dim=1)


def instance_result(
    answers: MaskCandidates, chosen: Int64[Tensor, "q"], truth: Sequence[Rle]
) -> list[InstanceResult]:
    """The chosen masks beside the truth, and the oracle's choice."""
    every = sorted({*range(answers.first_candidate, answers.iou.shape[1]), *chosen.tolist()})
    masks = {k: answers.masks(torch.full_like(chosen, k)) for k in every}
    ious = {k: ious_of(masks[k], truth) for k in every}
    return [
        InstanceResult(
            mask=masks[k][place],
            iou=float(ious[k][place]),
            best_iou=float(max(ious[other][place] for other in every)),
            score=float(answers.iou[place, k]),
        )
        for place, k in enumerate(chosen.tolist())
    ]


def ious_of(masks: Sequence[Rle], truth: Sequence[Rle]) -> Float[np.ndarray, "q"]:
    """IoU of each mask with its truth."""
    starts = range(0, len(masks), _PAIRS)
    parts = [pair_iou(masks[at : at + _PAIRS], truth[at : at + _PAIRS]) for at in starts]
    return np.concatenate([np.zeros(0), *parts])
