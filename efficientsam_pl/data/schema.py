"""The layout of a shard, defined once.

A shard is a WebDataset tar: the files of a sample follow each other and share a key, which is the
name up to its first dot. There are three kinds of samples, and room for more:

masked images   `KEY.jpg` and `KEY.json`, the JSON in SA-1B's form, so that Meta's own `sa_*.tar`
                are shards as they are:
                {"image": {"image_id", "width", "height", "file_name"},
                 "annotations": [{"id", "segmentation": COCO run-lengths, "bbox": [x, y, w, h],
                                  "area", "predicted_iou", "stability_score", ...}]}
plain images    `KEY.jpg` and, where the class is known, `KEY.cls`: its number as text.
label maps      `KEY.jpg` and `KEY.label.png`, an 8-bit grey PNG of the image's size: a class number
                for every pixel, 255 where it is ignored.

A box is XYWH with w = xmax - xmin, as in SA-1B. Masked images written here add a top-level
"efficientsam_pl": {"version": 1}, where the image was shrunk with its "original_width" and
"original_height", "iscrowd" to an annotation that COCO calls a crowd, and its "category_id" where
the set has categories, whose names are in the pack-summary.json beside the shards.

An image may also be a `.jpeg` or `.png`. A reader takes the suffixes it knows and ignores the
others, so further kinds of files get new suffixes. A teacher's features (their format:
data/features/codec.py) are in separate shards, one for each shard of images:

`KEY.view0.safetensors`, `KEY.view1...`   of random crops, by number
`KEY.centre.safetensors`                  of the centre crop, of held-out images
`KEY.photo.safetensors`                   of the whole image
"""

import json
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from efficientsam_pl.rle import Rle, area, boxes_xyxy, from_coco, run_lengths

VERSION = 1
IMAGE_SUFFIXES = ("jpg", "jpeg", "png")
RECORD_SUFFIX, CLASS_SUFFIX, LABEL_SUFFIX = "json", "cls", "label.png"
MASK_SUFFIXES = (*IMAGE_SUFFIXES, RECORD_SUFFIX)  # the files of a masked image
CENTRE_SUFFIX, WHOLE_SUFFIX = "centre.safetensors", "photo.safetensors"
_VIEW_SUFFIX = re.compile(r"view\d+\.safetensors")
_PACKING_KEY = "efficientsam_pl"
# WebDataset's rule: the first dot after the folders; a name without a dot is no part of a sample
_KEY_AND_SUFFIX = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)", re.DOTALL)


class CorruptSampleError(ValueError):
    """A sample that cannot be used; `kind` counts in the run's report."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind, self.detail = kind, detail

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.kind, self.detail)


class Annotation(NamedTuple):
    """One mask of an image."""

    rle: Rle
    area: int  # pixels, as the file states it; counted from the runs where it does not
    crowd: bool = False
    predicted_iou: float | None = None  # SA-1B's: of the model that drew the mask
    stability: float | None = None
    category_id: int | None = None  # COCO's number; None where the set has no categories


@dataclass(frozen=True)
class Record:
    """The content of a sample's JSON file."""

    width: int
    height: int
    annotations: tuple[Annotation, ...]
    original_hw: tuple[int, int] | None = None  # before the image was shrunk, if it was


def key_and_suffix(name: str) -> tuple[str, str] | None:
    """Split a file's name into key and lower-case suffix; None for a file of no sample."""
    named = _KEY_AND_SUFFIX.fullmatch(name.removeprefix("./"))
    return (named[1], named[2].lower()) if named else None


def view_suffix(view: int) -> str:
    """Suffix of the file with the features of a numbered crop."""
    return f"view{view}.safetensors"


def holds_features(suffix: str) -> bool:
    """Return whether files of this suffix hold a teacher's features."""
    known = suffix in (CENTRE_SUFFIX, WHOLE_SUFFIX)
    return known or _VIEW_SUFFIX.fullmatch(suffix) is not None


def to_json(file_name: str, record: Record) -> bytes:
    """Serialize the record of a masked image."""
    boxes = boxes_xyxy([annotation.rle for annotation in record.annotations])
    packing: dict[str, Any] = {"version": VERSION}
    if record.original_hw is not None:
        packing["original_height"], packing["original_width"] = record.original_hw
    image = {
        "image_id": file_name.rsplit(".", 1)[0],
        "width": record.width,
        "height": record.height,
        "file_name": file_name,
    }
    annotations = [
        _entry(index, annotation, box)
        for index, (annotation, box) in enumerate(
            zip(record.annotations, boxes.tolist(), strict=True)
        )
    ]
    whole = {_PACKING_KEY: packing, "image": image, "annotations": annotations}
    return json.dumps(whole, separators=(",", ":")).encode()


def from_json(data: bytes) -> Record:
    """Parse the record in a masked image's JSON, ours or SA-1B's.

    Raises:
        CorruptSampleError: Another form, run-lengths of another size, or a newer version of ours.
    """
    try:
        loaded = json.loads(data)
        packing = loaded.get(_PACKING_KEY, {})
        version = packing.get("version", VERSION)
        if version != VERSION:
            raise CorruptSampleError("unknown version", f"{version}, this program reads {VERSION}")
        width, height = int(loaded["image"]["width"]), int(loaded["image"]["height"])
        annotations = tuple(_annotation(a, width, height) for a in loaded["annotations"])
        original = (
            (int(packing["original_height"]), int(packing["original_width"]))
            if len(packing) > 1
            else None
        )
    except CorruptSampleError:
        raise
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise CorruptSampleError("bad json", repr(error)) from error
    return Record(width, height, annotations, original)


def annotation_of(rle: Rle, crowd: bool = False, category_id: int | None = None) -> Annotation:
    """Build an annotation whose area is counted from its runs."""
    return Annotation(rle, area(rle), crowd, category_id=category_id)


def _annotation(entry: dict[str, Any], width: int, height: int) -> Annotation:
    segmentation = entry["segmentation"]
    if isinstance(segmentation, dict) and list(segmentation["size"]) != [height, width]:
        raise CorruptSampleError(
            "mask size", f"run-lengths of {segmentation['size']} in an image of {[height, width]}"
        )
    rle = from_coco(segmentation, height, width)
    # a polygon's stated area is the polygon's, not the pixels'
    stated = entry.get("area") if isinstance(segmentation, dict) else None
    return Annotation(
        rle=rle,
        area=int(run_lengths([rle])[0][1::2].sum()) if stated is None else int(stated),
        crowd=bool(entry.get("iscrowd", 0)),
        predicted_iou=_score(entry.get("predicted_iou")),
        stability=_score(entry.get("stability_score")),
        category_id=None if (number := entry.get("category_id")) is None else int(number),
    )


def _score(stated: Any) -> float | None:
    return None if stated is None else float(stated)


def _entry(index: int, annotation: Annotation, box: list[float]) -> dict[str, Any]:
    x0, y0, x1, y1 = box
    entry: dict[str, Any] = {
        "id": index,
        "segmentation": annotation.rle,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": annotation.area,
    }
    if annotation.predicted_iou is not None:
        entry["predicted_iou"] = annotation.predicted_iou
    if annotation.stability is not None:
        entry["stability_score"] = annotation.stability
    if annotation.category_id is not None:
        entry["category_id"] = annotation.category_id
    return entry | ({"iscrowd": 1} if annotation.crowd else {})
