"""Columns and rows of a comparison, and the numbers of a result that it shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from efficientsam_pl.evaluation.results.published import DETECTION_BOXES, DETECTION_MASKS, SEMANTIC
from efficientsam_pl.evaluation.results.result_file import Result

KINDS = {
    "coco": "COCO",
    "lvis": "LVIS",
    "shards": "shards",
    "classes": "classes",
    "label maps": "label maps",
}
AP_TITLES = {
    "ap": "AP",
    "ap_small": "AP S",
    "ap_medium": "AP M",
    "ap_large": "AP L",
    "ap_rare": "AP r",
    "ap_common": "AP c",
    "ap_frequent": "AP f",
}
ACCURACY_TITLES = {"top1": "top-1", "top5": "top-5"}
_MIOU = {SEMANTIC: "mIoU"}  # of other protocols it is the only number, and has their name
_SHAPES = {DETECTION_BOXES: "box ", DETECTION_MASKS: "mask "}


class Column(NamedTuple):
    """Identity of a column; `number` is "miou", or a name of AP's numbers or of an accuracy."""

    kind: str
    protocol: str
    number: str

    def title(self) -> str:
        """Format the column for the table's head."""
        named = {"miou": _MIOU.get(self.protocol, self.protocol)} | AP_TITLES | ACCURACY_TITLES
        of = named[self.number]
        return f"{KINDS.get(self.kind, self.kind)} {_SHAPES.get(self.protocol, '')}{of}"


@dataclass(frozen=True)
class Row:
    """A model's numbers, in percent."""

    name: str
    cells: dict[Column, float]
    of_paper: bool = False


class Source(NamedTuple):
    """A result and the file it was read from."""

    file: str
    result: Result


def shown_numbers(result: Result) -> Iterator[tuple[Column, float]]:
    """Yield the numbers of a result that the table shows, in percent."""
    kind = str(result.data["kind"])
    for protocol, numbers in result.numbers.items():
        if "miou" in numbers and numbers["miou"]["all"] is not None:
            yield Column(kind, protocol, "miou"), 100 * numbers["miou"]["all"]
        for name in AP_TITLES:
            value = numbers.get("ap", {}).get(name)
            if value is not None and value >= 0:  # -1 where there is nothing to find
                yield Column(kind, protocol, name), 100 * value
        for name in ACCURACY_TITLES:
            if name in numbers.get("accuracy", {}):
                yield Column(kind, protocol, name), 100 * numbers["accuracy"][name]
