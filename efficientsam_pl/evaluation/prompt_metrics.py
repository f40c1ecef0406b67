"""Scores of a set of images over all ranks: means of IoUs, mask AP, and counts."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from efficientsam_pl.evaluation.config import ValidationConfig
from efficientsam_pl.evaluation.metrics.average_precision import MaskAp
from efficientsam_pl.evaluation.metrics.matching import AveragePrecision
from efficientsam_pl.evaluation.metrics.mean_iou import Mean, MeanIouBySize
from efficientsam_pl.evaluation.metrics.sizes import SIZES, size_of
from efficientsam_pl.evaluation.protocols.base import promptable_instances
from efficientsam_pl.evaluation.results.record import ImageRecord
from efficientsam_pl.records import InstanceImage

_BOX_METRICS = ("box", "filled_box", "filled_box_grid", "reachable")
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
    """mIoU by protocol, mask AP from box prompts (class-agnostic), and counts.

    `filled_box` needs no model; `filled_box_grid` and `reachable` score the filled box and the true
    masks after they went through the model's mask grid (`metrics.reachable`). `by_size` has
    "small", "medium" and "large", by the mask's pixels in the image as it is scored.
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
        """The mIoU after one click."""
        return self.clicks[1]


class Counts(NamedTuple):
    """Scored images and masks, and corrupt images."""

    photos: int
    masks: int
    damaged: int


class Counter(Metric):
    """Counts of images and masks over all ranks."""

    full_state_update = False
    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(3, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, photos: int, masks: int, damaged: int) -> None:
        """Add to the counts."""
        self.counts = self.counts + self.counts.new_tensor([photos, masks, damaged])

    def compute(self) -> Counts:
        """Return the counts over all ranks."""
        return Counts(*self.counts.tolist())


class ImageScores(nn.Module):
    """Collects records of images, and what mask AP needs: masks as run-lengths."""

    def __init__(self, config: ValidationConfig) -> None:
        super().__init__()
        protocols = {_click(count): config.protocol_of(count) for count in config.clicks}
        self._protocols = {"box": "box", **protocols}  # by metric
        self._clicks = config.clicks
        self.means = nn.ModuleDict({name: MeanIouBySize() for name in self._names()})
        self.ap, self.counter = MaskAp(), Counter()

    def add(self, record: ImageRecord, annotations: InstanceImage) -> None:
        """Add an image.

        Args:
            record: Record from `validation_evaluator`.
            annotations: Instances of the image, in the order of their ids.
        """
        size = torch.tensor([_PLACES[size_of(area)] for area in record.areas], dtype=torch.int64)
        ious = {name: record.marks[protocol].chosen for name, protocol in self._protocols.items()}
        for name in _BOX_METRICS[1:]:
            ious[name] = getattr(record, name)
        for name, values in ious.items():
            if record.instances and not values:
                continue  # a model without a mask grid
            mean = self._mean(name)
            mean.update(
                torch.tensor(values, dtype=torch.float64, device=mean.device), size.to(mean.device)
            )
        if record.instances:
            instances, _ = promptable_instances(annotations.instances)
            self.ap.update(
                f"{record.photo:012d}",  # in the order of the set, as `evaluate` breaks ties
                [instance.mask for instance in instances],
                [detection.mask for detection in record.detections],
                torch.tensor(
                    [detection.score for detection in record.detections], dtype=torch.float64
                ),
            )
        self.counter.update(1, len(record.instances), 0)

    def add_damaged(self, images: int) -> None:
        """Count images that could not be read."""
        self.counter.update(0, 0, images)

    def reset(self) -> None:
        """Forget all images."""
        for metric in self._metrics():
            metric.reset()

    def compute(self) -> Scores:
        """Compute the scores so far; every rank calls it, and all get the same."""
        with warnings.catch_warnings():
            # a rank may have no image at all
            warnings.filterwarnings("ignore", ".*was called before the ``update`` method.*")
            counts = self.counter.compute()
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
        return (*_BOX_METRICS, *(_click(count) for count in self._clicks))

    def _sized(self, means: Mapping[str, Mapping[str, Mean]], size: str) -> SizeScores:
        clicks = {count: means[_click(count)][size].value for count in self._clicks}
        rest = {name: means[name][size].value for name in _BOX_METRICS}
        return SizeScores(clicks=clicks, masks=means["box"][size].masks, **rest)

    def _metrics(self) -> Sequence[Metric]:
        return [module for module in self.modules() if isinstance(module, Metric)]

    def _mean(self, name: str) -> MeanIouBySize:
        return cast(MeanIouBySize, self.means[name])


def _click(count: int) -> str:
    return f"click{count}"
