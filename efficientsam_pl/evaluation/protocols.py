"""How a segmenter is scored on photos with known masks, each protocol by name.

`box`: the tight ground-truth box; `click1`: one uniform random foreground pixel, seeded for each
mask so that ranks do not matter (EfficientSAM's own protocol). The candidate with the highest
predicted IoU is scored at the photo's size. `filled_box` is the baseline of a box prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch

from efficientsam_pl.draws import draw_key, uniform
from efficientsam_pl.evaluation.average_precision import AveragePrecision, MaskAp
from efficientsam_pl.evaluation.metrics import MeanIou, fill_boxes, mask_iou
from efficientsam_pl.rle import (
    Rle,
    area,
    box_xyxy,
    decode,
    encode_many,
    foreground_points,
    foreground_runs,
    run_lengths,
)

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, UInt8
    from torch import Tensor

_PROMPTS_AT_ONCE = 32


@runtime_checkable
class Answer(Protocol):
    """Masks and predicted IoU of q prompts."""

    @property
    def iou(self) -> Float[Tensor, "q k"]:
        """Expected IoU of each candidate."""
        ...

    def best(self) -> Bool[Tensor, "q h w"]:
        """Each prompt's chosen mask at the photo's size."""
        ...


@runtime_checkable
class Embedded(Protocol):
    """A photo that can be asked."""

    def predict(self, *, points: Any = None, boxes: Any = None) -> Answer:
        """Answers to [q, 1, 2] points or [q, 4] boxes in image pixels."""
        ...


@runtime_checkable
class Embeds(Protocol):
    """Anything that can be scored."""

    def embed(self, image: UInt8[np.ndarray, "h w 3"]) -> Embedded:
        """A photo made ready for prompts."""
        ...


@runtime_checkable
class Photo(Protocol):
    """A photo with the masks to score."""

    @property
    def key(self) -> str:
        """Its name, unique in the set."""
        ...

    @property
    def image(self) -> UInt8[np.ndarray, "h w 3"]:
        """RGB at its own size."""
        ...

    @property
    def truth(self) -> tuple[Rle, ...]:
        """Masks at the photo's size."""
        ...


@dataclass(frozen=True)
class Scores:
    """mIoU by protocol, mask AP from box prompts (class-agnostic), and what was counted."""

    box: float
    click1: float
    filled_box: float
    ap: AveragePrecision
    photos: int
    masks: int


def score_photos(segmenter: Embeds, photos: Iterable[Photo], seed: int) -> Scores:
    """Scores every mask of every photo once.

    Args:
        segmenter: What is scored.
        photos: Photos with masks that are neither crowds nor empty.
        seed: Of the clicks.
    """
    box, click, filled, ap = MeanIou(), MeanIou(), MeanIou(), MaskAp()
    seen = masks = 0
    for photo in photos:
        seen += 1
        masks += len(photo.truth)
        if not photo.truth:
            continue
        embedded = segmenter.embed(photo.image)
        detections: list[Rle] = []
        scores = []
        for first in range(0, len(photo.truth), _PROMPTS_AT_ONCE):
            some = photo.truth[first : first + _PROMPTS_AT_ONCE]
            truth = torch.from_numpy(np.stack([decode(rle) for rle in some]))
            boxes = torch.tensor([box_xyxy(rle) for rle in some])
            by_box = embedded.predict(boxes=boxes.numpy())
            by_click = embedded.predict(points=random_clicks(photo.key, some, first, seed))
            chosen = by_box.best().cpu()
            box.update(mask_iou(chosen, truth))
            click.update(mask_iou(by_click.best().cpu(), truth))
            filled.update(mask_iou(fill_boxes(boxes, *truth.shape[-2:]), truth))
            detections.extend(encode_many(chosen.numpy()))
            scores.append(by_box.iou.amax(dim=1).cpu())
        ap.update(photo.key, photo.truth, detections, torch.cat(scores))
    return Scores(
        box=float(box.compute()),
        click1=float(click.compute()),
        filled_box=float(filled.compute()),
        ap=ap.compute(),
        photos=seen,
        masks=masks,
    )


def random_clicks(
    photo: str, rles: Sequence[Rle], first: int, seed: int
) -> Float[np.ndarray, "q 1 2"]:
    """One uniform foreground pixel of each mask, (x, y), drawn from seed, photo and place."""
    points = []
    for index, rle in enumerate(rles, start=first):
        key = torch.tensor(draw_key(seed, 0, f"{photo}/{index}"))
        rank = int(uniform(key, 1, "click1").double() * area(rle))
        runs = foreground_runs(run_lengths([rle]))
        points.append(foreground_points(runs, rle["size"][0], np.array([[rank]]))[0])
    return np.stack(points).astype(np.float32)
