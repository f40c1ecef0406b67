"""What a set of photos scores, over all ranks: means of IoUs, mask AP, and what was counted."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from efficientsam_pl.evaluation.average_precision import MaskAp
from efficientsam_pl.evaluation.matching import AveragePrecision
from efficientsam_pl.evaluation.metrics import MeanIou
from efficientsam_pl.evaluation.protocols import AskedPhoto, Questions, examine
from efficientsam_pl.rle import Rle


@dataclass(frozen=True)
class Scores:
    """mIoU by protocol, mask AP from box prompts (class-agnostic), and what was counted."""

    box: float
    clicks: dict[int, float]
    filled_box: float
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


class PhotoScores(nn.Module):
    """Asks about photos and keeps what is needed to score them: masks as run-lengths."""

    def __init__(self, questions: Questions) -> None:
        super().__init__()
        self.questions = questions
        self.box, self.filled_box, self.ap = MeanIou(), MeanIou(), MaskAp()
        self.clicks = nn.ModuleDict({str(count): MeanIou() for count in questions.clicks})
        self.counted = Counted()

    def add(self, photo: AskedPhoto) -> None:
        """Asks about every mask of a photo and counts the answers in."""
        detections: list[Rle] = []
        scores: list[Tensor] = []
        for marks in examine(photo, self.questions):
            means = {self.box: marks.box, self.filled_box: marks.filled_box}
            means |= {self._clicks(count): iou for count, iou in marks.clicks.items()}
            for metric, iou in means.items():
                metric.update(iou.to(metric.device))
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
            return Scores(
                box=float(self.box.compute()),
                clicks={
                    count: float(self._clicks(count).compute()) for count in self.questions.clicks
                },
                filled_box=float(self.filled_box.compute()),
                ap=self.ap.compute(),
                photos=counts.photos,
                masks=counts.masks,
                damaged=counts.damaged,
            )

    def _metrics(self) -> Sequence[Metric]:
        return [module for module in self.modules() if isinstance(module, Metric)]

    def _clicks(self, count: int) -> MeanIou:
        return cast(MeanIou, self.clicks[str(count)])
