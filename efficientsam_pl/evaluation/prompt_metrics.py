"""What a set of photos scores, over all ranks: means of IoUs, mask AP, and what was counted."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from efficientsam_pl.evaluation.metrics.average_precision import MaskAp
from efficientsam_pl.evaluation.metrics.matching import AveragePrecision
from efficientsam_pl.evaluation.metrics.mean_iou import Mean, MeanIouBySize
from efficientsam_pl.evaluation.metrics.reachable import GridIouCache
from efficientsam_pl.evaluation.metrics.sizes import SIZES, size_of
from efficientsam_pl.evaluation.training_protocols import (
    PromptedImage,
    ProtocolScores,
    Questions,
    examine,
)
from efficientsam_pl.rle import Rle, areas

_BESIDE_CLICKS = ("box", "filled_box", "filled_box_grid", "reachable")
_PLACES = {name: place for place, name in enumerate(SIZES)}


@dataclass(frozen=True)
class SizeScores:
    """mIoU by protocol over masks of one size, and their number; nan where there is none."""

    box: float
    clicks: dict[int, float]
    filled_box: float
    filled_box_grid: float
    reachable: float
    masks: int


@dataclass(frozen=True)
class Scores:
    """mIoU by protocol, mask AP from box prompts (class-agnostic), and what was counted.

    `filled_box` needs no model; `filled_box_grid` and `reachable` are what the model's mask grid
    makes of the filled box and of the true masks (`evaluation.reachable`). `by_size` has "small",
    "medium" and "large", by the mask's pixels in the image as it is scored.
    """

    box: float
    clicks: dict[int, float]
    filled_box: float
    filled_box_grid: float
    reachable: float
    by_size: dict[str, SizeScores]
    ap: AveragePrecision
    photos: int
    masks: int
    damaged: int

    @property
    def click1(self) -> float:
        """mIoU after one click."""
        return self.clicks[1]


class Counts(NamedTuple):
    """Photos and masks that were scored, and photos that could not be."""

    photos: int
    masks: int
    damaged: int


class Counted(Metric):
    """Adds up over all ranks what was counted."""

    full_state_update = False
    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(3, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, photos: int, masks: int, damaged: int) -> None:
        """Counts these in."""
        self.counts = self.counts + self.counts.new_tensor([photos, masks, damaged])

    def compute(self) -> Counts:
        """The counts so far, over all ranks."""
        return Counts(*self.counts.tolist())


class ImageScores(nn.Module):
    """Asks about photos and keeps what is needed to score them: masks as run-lengths.

    What the mask grid makes of the truth is computed at a photo's first scoring and kept, also
    through `reset`: it depends on no weights, and a mask takes 16 bytes.
    """

    def __init__(self, questions: Questions) -> None:
        super().__init__()
        self.questions = questions
        self.means = nn.ModuleDict({name: MeanIouBySize() for name in self._names()})
        self.ap, self.counted = MaskAp(), Counted()
        self._grid_values = GridIouCache()

    def add(self, photo: PromptedImage) -> None:
        """Asks about every mask of a photo and counts the answers in."""
        detections: list[Rle] = []
        scores: list[Tensor] = []
        sizes = [_PLACES[size_of(area)] for area in areas(photo.truth).tolist()]
        begin = 0
        for marks in examine(photo, self.questions, self._grid_values):
            size = torch.tensor(sizes[begin : begin + len(marks.box)])
            begin += len(marks.box)
            for name, iou in _named(marks).items():
                mean = self._mean(name)
                mean.update(iou.to(mean.device), size.to(mean.device))
            detections += marks.detections
            scores.append(marks.scores)
        if scores:
            self.ap.update(photo.key, photo.truth, detections, torch.cat(scores))
        self.counted.update(1, len(photo.truth), 0)

    def add_damaged(self, photos: int) -> None:
        """Counts photos in that could not be read."""
        self.counted.update(0, 0, photos)

    def reset(self) -> None:
        """Forgets all photos."""
        for metric in self._metrics():
            metric.reset()

    def compute(self) -> Scores:
        """The scores so far; every rank calls it, and all get the same."""
        with warnings.catch_warnings():
            # a rank may have no photo at all
            warnings.filterwarnings("ignore", ".*was called before the ``update`` method.*")
            counts = self.counted.compute()
            means = {name: self._mean(name).compute() for name in self._names()}
            sized = {size: self._sized(means, size) for size in ("all", *SIZES)}
            every = sized.pop("all")
            return Scores(
                box=every.box,
                clicks=every.clicks,
                filled_box=every.filled_box,
                filled_box_grid=every.filled_box_grid,
                reachable=every.reachable,
                by_size=sized,
                ap=self.ap.compute(),
                photos=counts.photos,
                masks=counts.masks,
                damaged=counts.damaged,
            )

    def _names(self) -> Sequence[str]:
        return (*_BESIDE_CLICKS, *(_click(count) for count in self.questions.clicks))

    def _sized(self, means: Mapping[str, Mapping[str, Mean]], size: str) -> SizeScores:
        clicks = {count: means[_click(count)][size].value for count in self.questions.clicks}
        rest = {name: means[name][size].value for name in _BESIDE_CLICKS}
        return SizeScores(clicks=clicks, masks=means["box"][size].masks, **rest)

    def _metrics(self) -> Sequence[Metric]:
        return [module for module in self.modules() if isinstance(module, Metric)]

    def _mean(self, name: str) -> MeanIouBySize:
        return cast(MeanIouBySize, self.means[name])


def _named(marks: ProtocolScores) -> dict[str, Tensor]:
    clicks = {_click(count): iou for count, iou in marks.clicks.items()}
    return clicks | {name: getattr(marks, name) for name in _BESIDE_CLICKS}


def _click(count: int) -> str:
    return f"click{count}"
