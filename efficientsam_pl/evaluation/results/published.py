"""Results of the paper, for comparison with ours: zero-shot segmentation, downstream tasks.

Source:
    EfficientSAM, arXiv 2312.00863v1, section 4.3: mIoU on COCO val2017 and LVIS val for a tight
    box and for uniform random clicks, the candidate with the highest predicted IoU scored; AP
    with ViTDet's boxes, the candidate with the highest IoU with the box. SAM's AP uses a
    second pass that feeds the mask back (SAM, 2304.02643). Tables 1 to 3: downstream tasks of
    encoders pretrained by MAE and by SAMI.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PAPER = "EfficientSAM, arXiv 2312.00863v1"
SOURCE = f"{PAPER}, 4.3"
DATA = {"coco": "COCO val2017, 5,000 photos", "lvis": "LVIS v1 val, 19,809 photos"}
PROTOCOLS = ("box", "click_random_1", "click_random_3")
AP_NAMES = ("ap", "ap_small", "ap_medium", "ap_large")
CLASSIFICATION = "classification"  # protocols
DETECTION_BOXES, DETECTION_MASKS = "detection_boxes", "detection_masks"
SEMANTIC = "semantic"


@dataclass(frozen=True)
class PublishedRow:
    """A model's row of a table: by PROTOCOLS or AP_NAMES, in percent."""

    model: str
    coco: tuple[float, ...] = ()
    lvis: tuple[float, ...] = ()
    second_pass: bool = False

    def values(self, kind: str) -> tuple[float, ...]:
        """Return the numbers on COCO or on LVIS."""
        return {"coco": self.coco, "lvis": self.lvis}[kind]


@dataclass(frozen=True)
class TaskTable:
    """A downstream task's rows in percent, by encoder; a result is alike with as many classes."""

    title: str  # of the number
    table: str  # of the paper
    data: str
    classes: int
    rows: Mapping[str, float]


MIOU = (
    PublishedRow("SAM-H", (78.4, 55.6, 74.1), (78.9, 59.8, 75.2)),
    PublishedRow("MobileSAM", (74.2, 43.7, 59.7), (73.8, 51.0, 54.4)),
    PublishedRow("SAM-MAE-Ti", (74.7, 43.3, 65.8), (73.8, 50.6, 65.3)),
    PublishedRow("EfficientSAM-Ti", (75.7, 45.5, 67.2), (74.3, 52.7, 66.8)),
    PublishedRow("EfficientSAM-S", (76.9, 50.0, 69.8), (75.4, 56.2, 68.7)),
)
AP = (
    PublishedRow("SAM-H", (46.5, 30.8, 51.0, 61.7), (44.7, 32.5, 57.6, 65.5), second_pass=True),
    PublishedRow("MobileSAM", (38.7, 23.7, 42.2, 54.3), (34.4, 23.8, 44.9, 53.7)),
    PublishedRow("FastSAM", (37.9, 23.9, 43.4, 50.0), (34.5, 24.6, 46.2, 50.8)),
    PublishedRow("EfficientSAM-Ti", (42.3, 26.7, 46.2, 57.4), (39.9, 28.9, 51.0, 59.9)),
    PublishedRow("EfficientSAM-S", (44.4, 28.4, 48.3, 60.1), (42.3, 30.8, 54.0, 62.3)),
)
_ENCODERS = ("MAE-Ti", "SAMI-Ti", "MAE-S", "SAMI-S", "MAE-B", "SAMI-B")
_COCO = "COCO val2017, 5,000 photos"


def _rows(*values: float) -> dict[str, float]:
    return dict(zip(_ENCODERS, values, strict=True))


# by protocol and the name of its number
TASKS = {
    (CLASSIFICATION, "top1"): TaskTable(
        "top-1",
        "table 1",
        "ImageNet-1K val, 50,000 photos",
        1000,
        _rows(75.2, 76.8, 81.5, 82.7, 83.6, 84.8),
    ),
    (DETECTION_BOXES, "ap"): TaskTable(
        "box AP", "table 2", _COCO, 80, _rows(37.9, 44.7, 45.3, 49.8, 51.6, 52.5)
    ),
    (DETECTION_MASKS, "ap"): TaskTable(
        "mask AP", "table 2", _COCO, 80, _rows(34.9, 40.0, 40.8, 44.2, 45.9, 46.5)
    ),
    (SEMANTIC, "miou"): TaskTable(
        "mIoU",
        "table 3",
        "ADE20K val, 2,000 photos",
        150,
        _rows(39.0, 42.7, 44.1, 48.8, 49.3, 51.8),
    ),
}
