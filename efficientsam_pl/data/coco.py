"""COCO-format sets as masked photos: polygons, run-lengths and crowds."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efficientsam_pl.data.decode import decode_mask, decode_photo
from efficientsam_pl.data.schema import Annotation, DamagedSampleError, annotation_of
from efficientsam_pl.data.writer import MaskedPhoto
from efficientsam_pl.errors import UserError
from efficientsam_pl.rle import from_coco


class CocoError(UserError):
    """An annotation file that cannot be used; one line for the user."""


@dataclass(frozen=True)
class CocoEntry:
    """A photo of the set: where it lies and its annotations, still as COCO writes them."""

    key: str
    path: Path
    annotations: tuple[dict[str, Any], ...]


def read_coco(annotations: Path, images: Path) -> list[CocoEntry]:
    """The photos of a set in the file's order.

    Raises:
        CocoError: A missing file or folder, or a file without COCO's keys.
    """
    for path in (annotations, images):
        if not path.exists():
            raise CocoError(f"no such file or folder: {path}")
    try:
        loaded = json.loads(annotations.read_bytes())
        by_image = defaultdict(list)
        for annotation in loaded["annotations"]:
            by_image[annotation["image_id"]].append(annotation)
        entries: dict[str, CocoEntry] = {}
        for image in loaded["images"]:
            key = Path(image["file_name"]).stem.replace(".", "_")
            if key in entries:  # a/1.jpg and b/1.jpg: one key would make them one sample
                key = f"{key}_{image['id']}"
            path = images / image["file_name"]
            entries[key] = CocoEntry(key, path, tuple(by_image[image["id"]]))
        return list(entries.values())
    except (ValueError, KeyError, TypeError) as error:
        raise CocoError(f"{annotations} is no COCO annotation file ({error!r})") from error


def coco_photos(entries: Iterable[CocoEntry], skipped: list[str]) -> Iterator[MaskedPhoto]:
    """The photos with their masks; one that cannot be read is named in `skipped`."""
    for entry in entries:
        try:
            image = decode_photo(entry.path.read_bytes())
        except (OSError, DamagedSampleError) as error:
            skipped.append(f"{entry.path}: {error}")
            continue
        height, width = image.shape[:2]
        masks: list[Annotation] = []
        for annotation in entry.annotations:
            try:
                rle = from_coco(annotation["segmentation"], height, width)
                decode_mask(rle)
            except (ValueError, KeyError, TypeError, OverflowError) as error:
                skipped.append(f"{entry.key} annotation {annotation.get('id')}: {error}")
                continue
            masks.append(annotation_of(rle, bool(annotation.get("iscrowd", 0))))
        yield MaskedPhoto(entry.key, image, tuple(masks))
