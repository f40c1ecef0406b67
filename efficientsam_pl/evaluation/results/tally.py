"""Means over the records of images, independent of their order."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from efficientsam_pl.evaluation.metrics.sizes import SIZES, size_of
from efficientsam_pl.evaluation.results.record import ImageRecord


@dataclass
class Means:
    """IoU over all instances and over the small, medium and large ones."""

    values: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, values: Iterable[float], areas: Iterable[float]) -> None:
        """Add the IoU and the area of each instance."""
        for value, area in zip(values, areas, strict=True):
            self.values["all"].append(value)
            self.values[size_of(area)].append(value)

    def means(self) -> dict[str, float | None]:
        """Average by size; None for a size without instances."""
        # fsum rounds once, at the end: the order of images does not change the last digit
        return {
            name: math.fsum(self.values[name]) / len(self.values[name])
            if self.values[name]
            else None
            for name in ("all", *SIZES)
        }


class Tally:
    """Accumulates records, one per image.

    Args:
        protocols: Names of the evaluated protocols.
    """

    def __init__(self, protocols: Iterable[str]) -> None:
        self._chosen = {name: Means() for name in protocols}
        self._oracle = {name: Means() for name in self._chosen}
        self._filled, self._filled_grid, self._reachable = Means(), Means(), Means()
        self._seen: set[int] = set()
        self._counts = {"photos": 0, "damaged_photos": 0, "crowds": 0, "empty": 0, "detections": 0}

    def add(self, record: ImageRecord) -> None:
        """Add an image.

        Raises:
            ValueError: The image was added before, or its protocols differ from the tally's.
        """
        if record.photo in self._seen:
            raise ValueError(f"photo {record.photo} is scored twice")
        self._seen.add(record.photo)
        if record.damage is not None:
            self._counts["damaged_photos"] += 1
            return
        if record.marks.keys() != self._chosen.keys():
            raise ValueError(
                f"photo {record.photo} was scored by {sorted(record.marks)}, not by "
                f"{sorted(self._chosen)}"
            )
        self._counts["photos"] += 1
        self._counts["crowds"] += record.crowds
        self._counts["empty"] += record.empty
        self._counts["detections"] += len(record.detections)
        self._filled.add(record.filled_box, record.areas)
        if record.reachable:
            self._filled_grid.add(record.filled_box_grid, record.areas)
            self._reachable.add(record.reachable, record.areas)
        for name, marks in record.marks.items():
            self._chosen[name].add(marks.chosen, record.areas)
            self._oracle[name].add(marks.oracle, record.areas)

    def counts(self) -> dict[str, int]:
        """Count scored and corrupt images, scored instances by size, and skipped annotations."""
        sizes = {name: len(self._filled.values[name]) for name in ("all", *SIZES)}
        return {
            "photos": self._counts["photos"],
            "damaged_photos": self._counts["damaged_photos"],
            "instances": sizes.pop("all"),
            **{f"{name}_instances": count for name, count in sizes.items()},
            "skipped_crowds": self._counts["crowds"],
            "skipped_empty": self._counts["empty"],
            "detections": self._counts["detections"],
        }

    def ious(self) -> dict[str, list[float]]:
        """Return the IoU of every instance's chosen mask, by protocol."""
        return {name: means.values["all"] for name, means in self._chosen.items()}

    def numbers(self) -> dict[str, dict[str, Any]]:
        """Compute the mIoU of the chosen and of the best candidates by protocol.

        For box also that of the filled box and, for a model with a mask grid, the grid's bounds.
        """
        numbers: dict[str, dict[str, Any]] = {}
        for name in self._chosen:
            numbers[name] = {
                "miou": self._chosen[name].means(),
                "oracle_miou": self._oracle[name].means(),
            }
            if name == "box":
                numbers[name]["filled_box_miou"] = self._filled.means()
                if self._reachable.values["all"]:
                    numbers[name]["filled_box_grid_miou"] = self._filled_grid.means()
                    numbers[name]["reachable_miou"] = self._reachable.means()
        return numbers
