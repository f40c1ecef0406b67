"""The masks of a crop or an image, and their records in SAM's format.

Axes: n masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import numpy as np
from jaxtyping import Float, Float64, Int64, Shaped

from efficientsam_pl.rle import Rle, area


class MaskRecord(TypedDict):
    """One mask as in SAM's and SA-1B's files; boxes are XYWH with w = xmax - xmin."""

    segmentation: Rle
    area: int
    bbox: list[int]
    predicted_iou: float
    point_coords: list[list[float]]
    stability_score: float
    crop_box: list[int]


@dataclass(frozen=True)
class MaskSet:
    """Masks in image pixels with their prompts, crops and scores (SAM's `MaskData`)."""

    rles: tuple[Rle, ...]
    boxes_xyxy: Int64[np.ndarray, "n 4"]
    iou: Float[np.ndarray, "n"]
    stability: Float[np.ndarray, "n"]
    points_xy: Float64[np.ndarray, "n 2"]
    crops_xywh: Int64[np.ndarray, "n 4"]

    def filter(self, keep: Shaped[np.ndarray, "_"]) -> MaskSet:
        """Select masks by index or by a bool for each."""
        numbers = np.flatnonzero(keep) if keep.dtype == bool else keep
        return MaskSet(
            tuple(self.rles[i] for i in numbers),
            self.boxes_xyxy[numbers],
            self.iou[numbers],
            self.stability[numbers],
            self.points_xy[numbers],
            self.crops_xywh[numbers],
        )

    def with_masks(self, rles: Sequence[Rle], boxes_xyxy: Int64[np.ndarray, "n 4"]) -> MaskSet:
        """Replace the masks and keep everything else."""
        return replace(self, rles=tuple(rles), boxes_xyxy=boxes_xyxy)

    @staticmethod
    def cat(sets: Sequence[MaskSet]) -> MaskSet:
        """Concatenate sets of masks."""
        empty = MaskSet(
            (),
            np.zeros((0, 4), np.int64),
            np.zeros(0, np.float32),
            np.zeros(0, np.float32),
            np.zeros((0, 2)),
            np.zeros((0, 4), np.int64),
        )
        every = [empty, *sets]

        def concatenate(name: str) -> Any:
            return np.concatenate([getattr(masks, name) for masks in every])

        names = ("boxes_xyxy", "iou", "stability", "points_xy", "crops_xywh")
        return MaskSet(
            tuple(rle for masks in every for rle in masks.rles),
            **{name: concatenate(name) for name in names},
        )

    def records(self) -> list[MaskRecord]:
        """Convert to the records that SAM's generator returns."""
        sizes = self.boxes_xyxy[:, 2:] - self.boxes_xyxy[:, :2]
        boxes_xywh = np.concatenate([self.boxes_xyxy[:, :2], sizes], axis=1)
        return [
            MaskRecord(
                segmentation=rle,
                area=area(rle),
                bbox=boxes_xywh[i].tolist(),
                predicted_iou=float(self.iou[i]),
                point_coords=[self.points_xy[i].tolist()],
                stability_score=float(self.stability[i]),
                crop_box=self.crops_xywh[i].tolist(),
            )
            for i, rle in enumerate(self.rles)
        ]
