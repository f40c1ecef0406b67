"""What is found in a crop and in a photo, and how SAM writes it down.

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
    """Masks in the photo's pixels, each with what it came from and how it is judged."""

    rles: tuple[Rle, ...]
    boxes_xyxy: Int64[np.ndarray, "n 4"]
    iou: Float[np.ndarray, "n"]
    stability: Float[np.ndarray, "n"]
    points_xy: Float64[np.ndarray, "n 2"]
    crops_xywh: Int64[np.ndarray, "n 4"]

    def take(self, chosen: Shaped[np.ndarray, "_"]) -> MaskSet:
        """Some of them, by number or by a bool for each."""
        numbers = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
        return MaskSet(
            tuple(self.rles[i] for i in numbers),
            self.boxes_xyxy[numbers],
            self.iou[numbers],
            self.stability[numbers],
            self.points_xy[numbers],
            self.crops_xywh[numbers],
        )

    def with_masks(self, rles: Sequence[Rle], boxes_xyxy: Int64[np.ndarray, "n 4"]) -> MaskSet:
        """The same with other masks."""
        return replace(self, rles=tuple(rles), boxes_xyxy=boxes_xyxy)

    @staticmethod
    def joined(parts: Sequence[MaskSet]) -> MaskSet:
        """The masks of all parts one after the other."""
        empty = MaskSet(
            (),
            np.zeros((0, 4), np.int64),
            np.zeros(0, np.float32),
            np.zeros(0, np.float32),
            np.zeros((0, 2)),
            np.zeros((0, 4), np.int64),
        )
        every = [empty, *parts]

        def together(name: str) -> Any:
            return np.concatenate([getattr(part, name) for part in every])

        names = ("boxes_xyxy", "iou", "stability", "points_xy", "crops_xywh")
        return MaskSet(
            tuple(rle for part in every for rle in part.rles),
            **{name: together(name) for name in names},
        )

    def records(self) -> list[MaskRecord]:
        """As SAM's generator returns them."""
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
