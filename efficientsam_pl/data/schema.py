"""The one place that knows what lies in a shard.

A shard is a WebDataset tar: the files of a sample follow each other and share a key, which is the
name up to its first dot. A masked image is `KEY.jpg` and `KEY.json`, the JSON in SA-1B's form, so
that Meta's own `sa_*.tar` are shards as they are:

    {"image": {"image_id", "width", "height", "file_name"},
     "annotations": [{"id", "segmentation": COCO run-lengths, "bbox": [x, y, w, h], "area", ...}]}

A box is XYWH with w = xmax - xmin, as in SA-1B. Shards written here add a top-level
"efficientsam_pl": {"version": 1}, and "iscrowd" to an annotation that COCO calls a crowd.
"""

import json
from dataclasses import dataclass
from typing import Any

from efficientsam_pl.rle import Rle, area, box_xyxy, from_coco

VERSION = 1
_OWN_KEY = "efficientsam_pl"


class DamagedSampleError(ValueError):
    """A sample that cannot be used; `kind` counts in the run's report."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind


@dataclass(frozen=True)
class Annotation:
    """One mask of a photo."""

    rle: Rle
    area: int  # pixels
    crowd: bool = False


@dataclass(frozen=True)
class Record:
    """What a sample's JSON says."""

    width: int
    height: int
    annotations: tuple[Annotation, ...]


def to_json(file_name: str, record: Record) -> bytes:
    """The JSON file of a masked image."""
    annotations = []
    for index, annotation in enumerate(record.annotations):
        x0, y0, x1, y1 = box_xyxy(annotation.rle)
        entry: dict[str, Any] = {
            "id": index,
            "segmentation": annotation.rle,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": annotation.area,
        }
        annotations.append(entry | ({"iscrowd": 1} if annotation.crowd else {}))
    image = {
        "image_id": file_name.rsplit(".", 1)[0],
        "width": record.width,
        "height": record.height,
        "file_name": file_name,
    }
    whole = {_OWN_KEY: {"version": VERSION}, "image": image, "annotations": annotations}
    return json.dumps(whole, separators=(",", ":")).encode()


def from_json(data: bytes) -> Record:
    """The record in a masked image's JSON, ours or SA-1B's.

    Raises:
        DamagedSampleError: Not that form, run-lengths of another size, or a newer version of ours.
    """
    try:
        loaded = json.loads(data)
        version = loaded.get(_OWN_KEY, {}).get("version", VERSION)
        if version != VERSION:
            raise DamagedSampleError("unknown version", f"{version}, this program reads {VERSION}")
        width, height = int(loaded["image"]["width"]), int(loaded["image"]["height"])
        annotations = tuple(_annotation(a, width, height) for a in loaded["annotations"])
    except DamagedSampleError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise DamagedSampleError("bad json", repr(error)) from error
    return Record(width, height, annotations)


def annotation_of(rle: Rle, crowd: bool = False) -> Annotation:
    """An annotation whose area is counted from its runs."""
    return Annotation(rle, area(rle), crowd)


def _annotation(entry: dict[str, Any], width: int, height: int) -> Annotation:
    rle = from_coco(entry["segmentation"], height, width)
    return annotation_of(rle, bool(entry.get("iscrowd", 0)))  # a stated area may be a polygon's
