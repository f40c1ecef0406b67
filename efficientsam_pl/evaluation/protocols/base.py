"""Shared parts of the protocols: the context of an evaluation and the result of an instance.

Axes: q prompts on one image, k masks a prompt.
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
from efficientsam_pl.records import Instance
from efficientsam_pl.rle import Rle, area, pair_iou

T = TypeVar("T")
_PAIRS = 8  # masks that are compared at once: pycocotools compares each with each


@runtime_checkable
class GroundTruthModel(Protocol):
    """An image of the baseline that predicts the truth; no other model sees it."""

    def with_truth(self, truth: Sequence[Rle]) -> PromptableImage:
        """Return the image whose next prompts point at these masks, one a prompt."""
        ...


@dataclass(frozen=True, kw_only=True)
class EvalContext:
    """The model, an embedded image, and how it is prompted.

    `prompts_at_once` bounds memory and time and changes no result. Without `oracle` only the masks
    that the protocols choose are brought to the image's size, and `best_iou` is None.
    """

    model: PromptableModel
    image: PromptableImage
    key: str  # of the image in its set, for keyed random draws
    seed: int = 0
    prompts_at_once: int = 32
    oracle: bool = True

    def image_for(self, truth: Sequence[Rle]) -> PromptableImage:
        """Return the image to prompt next for these masks."""
        if isinstance(self.image, GroundTruthModel):
            return self.image.with_truth(truth)
        return self.image

    def chunks(self, items: Sequence[T]) -> Iterator[Sequence[T]]:
        """Yield the items in chunks of at most `prompts_at_once`."""
        for first in range(0, len(items), self.prompts_at_once):
            yield items[first : first + self.prompts_at_once]


@dataclass(frozen=True)
class InstanceResult:
    """Result for one instance.

    `iou` is that of the mask that the protocol chooses without the truth; `best_iou` is the
    oracle's, of the best among the candidates and the chosen one; `score` is the IoU that the model
    predicts for the chosen one.
    """

    mask: Rle
    iou: float
    best_iou: float | None
    score: float


@runtime_checkable
class InstanceProtocol(Protocol):
    """A named way to prompt for annotated instances."""

    @property
    def name(self) -> str:
        """Name in configs and results."""
        ...

    def check(self, model: PromptableModel) -> None:
        """Reject a model that does not accept the prompts.

        Raises:
            UserError: With the reason.
        """
        ...

    def predict(self, context: EvalContext, instances: Sequence[Instance]) -> list[InstanceResult]:
        """Predict `promptable_instances` of one image; results are in the same order.

        Raises:
            UserError: As `check`.
        """
        ...


def promptable_instances(
    instances: Sequence[Instance],
) -> tuple[list[Instance], dict[str, int]]:
    """Select the instances that a prompt can mean.

    A crowd region is no single object. An instance without a pixel, or with a stated area of 0,
    has no place to click. A crowd without a pixel counts as a crowd.

    Returns:
        The instances, and how many were left out: "crowd", "zero_area".
    """
    kept: list[Instance] = []
    skipped: Counter[str] = Counter({"crowd": 0, "zero_area": 0})
    for instance in instances:
        if instance.crowd:
            skipped["crowd"] += 1
        elif instance.area <= 0 or area(instance.mask) == 0:
            skipped["zero_area"] += 1
        else:
            kept.append(instance)
    return kept, dict(skipped)


def best_candidate(candidates: MaskCandidates) -> Int64[Tensor, "q"]:
    """Choose the candidate with the highest predicted IoU; ties take the first."""
    first = candidates.first_candidate
    return first + candidates.iou[:, first:].argmax(dim=1)


def instance_results(
    candidates: MaskCandidates,
    chosen: Int64[Tensor, "q"],
    truth: Sequence[Rle],
    oracle: bool = True,
) -> list[InstanceResult]:
    """Score the chosen masks, and with `oracle` the best candidates."""
    scores = candidates.iou[torch.arange(len(chosen)), chosen].tolist()
    if not oracle:
        masks = candidates.masks(chosen)
        ious = ious_of(masks, truth).tolist()
        return [
            InstanceResult(mask, iou, None, score)
            for mask, iou, score in zip(masks, ious, scores, strict=True)
        ]
    tokens = sorted({*range(candidates.first_candidate, candidates.iou.shape[1]), *chosen.tolist()})
    every = {k: candidates.masks(torch.full_like(chosen, k)) for k in tokens}
    iou = {k: ious_of(every[k], truth) for k in tokens}
    return [
        InstanceResult(
            mask=every[k][place],
            iou=float(iou[k][place]),
            best_iou=float(max(iou[token][place] for token in tokens)),
            score=scores[place],
        )
        for place, k in enumerate(chosen.tolist())
    ]


def ious_of(masks: Sequence[Rle], truth: Sequence[Rle]) -> Float[np.ndarray, "q"]:
    """Compute the IoU of each mask with its truth."""
    starts = range(0, len(masks), _PAIRS)
    parts = [pair_iou(masks[at : at + _PAIRS], truth[at : at + _PAIRS]) for at in starts]
    return np.concatenate([np.zeros(0), *parts])
