"""Pack COCO-format sets as masked images: polygons, run-lengths and crowds."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efficientsam_pl.data.images.stated import ExifOrientation, decode_stated, exif_setting
from efficientsam_pl.data.packing.images import (
    JPEG_QUALITY,
    MaskedImage,
    limit_side,
    packed_sample,
    stored_jpeg,
)
from efficientsam_pl.data.packing.runner import ArrayShare, cut_into_shards
from efficientsam_pl.data.packing.writer import PackedSample, Skipped
from efficientsam_pl.data.schema import Annotation, CorruptSampleError, annotation_of
from efficientsam_pl.errors import UserError
from efficientsam_pl.rle import from_coco, run_lengths
from efficientsam_pl.storage.files import exists, is_local, read_file

_KINDS = (
    (list, "list"),
    (str, "text"),
    (bool, "boolean"),
    (int | float, "number"),
    (object, "null"),
)


class CocoError(UserError):
    """An annotation file that cannot be used; one line for the user."""


@dataclass(frozen=True)
class CocoEntry:
    """An image of the set: its path and its annotations, still in COCO's format."""

    key: str
    path: str
    annotations: tuple[dict[str, Any], ...]
    stated_hw: tuple[int, int] | None = None


def read_coco(annotations: str, images: str) -> list[CocoEntry]:
    """Read the images of a set in the file's order.

    Raises:
        CocoError: A missing file or folder, or a file without COCO's keys.
    """
    return entries_of(annotation_file(annotations, images), annotations, images)[0]


def annotation_file(annotations: str, images: str) -> bytes:
    """Read the bytes of a set's annotation file.

    Raises:
        CocoError: A missing file or folder.
    """
    for path in (annotations, images):
        if not exists(path):
            raise CocoError(f"no such file or folder: {path}")
    return read_file(annotations)


def entries_of(
    content: bytes, annotations: str, images: str
) -> tuple[list[CocoEntry], list[Skipped]]:
    """Parse the images, and the annotations of images that the file does not list.

    Raises:
        CocoError: The content lacks COCO's keys.
    """
    loaded = record_lists(content, annotations, ("images", "annotations"))
    by_image = defaultdict(list)
    for place, annotation in enumerate(loaded["annotations"]):
        by_image[_id(annotation, "image_id", f"annotation {place}", annotations)].append(annotation)
    entries: dict[str, CocoEntry] = {}
    listed = set()
    for place, image in enumerate(loaded["images"]):
        what = f"image {place}"
        number, name = _id(image, "id", what, annotations), image.get("file_name")
        if not isinstance(name, str) or not name:
            raise _no_coco(annotations, f"{what} has file_name={name!r}, no name")
        key = Path(name).stem.replace(".", "_")
        while key in entries:  # a/1.jpg and b/1.jpg: one key would make them one sample
            key = f"{key}_{number}"
        stated = _stated(image, what, annotations)
        annotations_of_image = tuple(by_image.get(number, ()))
        entries[key] = CocoEntry(key, f"{images.rstrip('/')}/{name}", annotations_of_image, stated)
        listed.add(number)
    strangers = by_image.keys() - listed
    if by_image and strangers == by_image.keys():
        known, other = next(iter(listed), "none"), next(iter(by_image))
        raise _no_coco(
            annotations,
            f"no annotation belongs to an image: image_id is such as {other!r}, an image's id such "
            f"as {known!r}",
        )
    return list(entries.values()), [
        Skipped(f"annotation {annotation.get('id')}", f"no image has the id {image_id}")
        for image_id in strangers
        for annotation in by_image[image_id]
    ]


def record_lists(content: bytes, path: str, keys: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Read the lists of records that an annotation file holds under these keys.

    Raises:
        CocoError: It is no JSON, or lacks one of the keys.
    """
    try:
        loaded = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _no_coco(path, f"it is no JSON ({error})") from error
    if not isinstance(loaded, dict):
        kind = next(name for types, name in _KINDS if isinstance(loaded, types))
        raise _no_coco(path, f"it holds a {kind}, not a record of lists")
    for key in keys:
        if key not in loaded:
            raise _no_coco(path, f"it has no {key!r}")
        records = loaded[key]
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            raise _no_coco(path, f"its {key!r} is no list of records")
    return {key: loaded[key] for key in keys}


def check_images(entries: Sequence[CocoEntry], annotations: str, key: str, images: str) -> None:
    """Raise a CocoError where images are listed and none of their files exists.

    Args:
        entries: The listed images.
        annotations: The file that lists them.
        key: The user's option or key for the folder.
        images: The folder. Not checked in a store, which would need a request for each image.
    """
    if entries and is_local(images) and not any(exists(entry.path) for entry in entries):
        raise CocoError(
            f"0 of {len(entries)} images of {annotations} are in {key}={images}, such as "
            f"{entries[0].path}"
        )


def _no_coco(path: str, what: str) -> CocoError:
    return CocoError(f"{path} is no COCO annotation file: {what}")


def _id(record: dict[str, Any], key: str, what: str, path: str) -> int | str:
    """Read an id; COCO's are whole numbers, but some programs write text."""
    value = record.get(key)
    if not isinstance(value, int | str):
        raise _no_coco(path, f"{what} has {key}={value!r}, no whole number")
    return value


def _stated(image: dict[str, Any], what: str, path: str) -> tuple[int, int] | None:
    if image.get("height") is None or image.get("width") is None:
        return None
    try:
        return int(image["height"]), int(image["width"])
    except (TypeError, ValueError, OverflowError) as error:
        size = f"height={image['height']!r} and width={image['width']!r}"
        raise _no_coco(path, f"{what} has {size}, no whole numbers") from error


def masked_image(
    entry: CocoEntry, data: bytes, exif_orientation: ExifOrientation = "apply"
) -> tuple[MaskedImage, list[Skipped]]:
    """Decode the image with its masks; return also the annotations that cannot be used.

    Raises:
        CorruptSampleError: The image cannot be decoded, or does not have the stated size.
    """
    image = decode_stated(data, entry.stated_hw, exif_orientation)  # else polygons are misplaced
    height, width = image.pixels.shape[:2]
    masks: list[Annotation] = []
    skipped = []
    for annotation in entry.annotations:
        what = f"{entry.key} annotation {annotation.get('id')}"
        if "segmentation" not in annotation:
            skipped.append(Skipped(what, "it has no segmentation"))
            continue
        try:
            rle = from_coco(annotation["segmentation"], height, width)
            run_lengths([rle])
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            skipped.append(Skipped(what, str(error)))
            continue
        masks.append(annotation_of(rle, bool(annotation.get("iscrowd", 0))))
    return MaskedImage(entry.key, image.pixels, tuple(masks), turn=image.turn), skipped


def masked_images(
    entries: Iterable[CocoEntry], exif_orientation: ExifOrientation = "apply"
) -> Iterator[tuple[CocoEntry, MaskedImage, bytes | None] | Skipped]:
    """Yield the images with their masks and the JPEG to keep, if any, and the skipped ones."""
    for entry in entries:
        try:
            data = read_file(entry.path)
            image, skipped = masked_image(entry, data, exif_orientation)
        except (OSError, CorruptSampleError) as error:
            yield Skipped(entry.path, str(error))
            continue
        yield from skipped
        yield entry, image, stored_jpeg(data, image.turn)


def coco_images(entries: Iterable[CocoEntry], skipped: list[str]) -> Iterator[MaskedImage]:
    """Yield the images with their masks; skipped ones are named in `skipped`."""
    for result in masked_images(entries):
        if isinstance(result, Skipped):
            skipped.append(f"{result.what}: {result.why}")
        else:
            yield result[1]


@dataclass(frozen=True)
class CocoUnit:
    """The images of one shard."""

    name: str
    entries: tuple[CocoEntry, ...]
    long_side: int | None
    exif_orientation: ExifOrientation = "apply"
    orphans: tuple[Skipped, ...] = ()  # annotations without an image, reported with the first shard

    @property
    def weight(self) -> int:
        """Number of images."""
        return len(self.entries)

    def samples(self) -> Iterator[PackedSample | Skipped]:
        """See Unit."""
        yield from self.orphans
        for result in masked_images(self.entries, self.exif_orientation):
            if isinstance(result, Skipped):
                yield result
                continue
            _, image, jpeg = result
            small = image if self.long_side is None else limit_side(image, self.long_side)
            yield packed_sample(small, jpeg if small is image else None)


class Coco:
    """A COCO-format set in shards `coco-000000.tar`, ...; JPEGs are kept where nothing shrinks."""

    def __init__(
        self,
        annotations: str,
        images: str,
        long_side: int | None,
        samples_per_shard: int,
        exif_orientation: ExifOrientation = "apply",
    ) -> None:
        self._exif_orientation = exif_orientation
        content = annotation_file(annotations, images)
        self._entries, orphans = entries_of(content, annotations, images)
        self._orphans = tuple(sorted(orphans, key=lambda skipped: skipped.what))
        self._digest = hashlib.sha256(content).hexdigest()[:16]
        self._long_side, self._limit = long_side, samples_per_shard
        if not self._entries:
            raise CocoError(f"{annotations} lists no image")
        check_images(self._entries, annotations, "--images", images)

    def described(self) -> dict[str, Any]:
        """See Source."""
        return {
            "kind": "coco",
            "annotations": self._digest,
            "photos": len(self._entries),
            "long_side": self._long_side,
            "jpeg_quality": JPEG_QUALITY,
            "samples_per_shard": self._limit,
            **exif_setting(self._exif_orientation),
        }

    def weight(self, share: ArrayShare) -> int:
        """Count the images of the share."""
        return sum(unit.weight for unit in self.units(share))

    def units(self, share: ArrayShare) -> Iterator[CocoUnit]:
        """See Source."""
        for number, entries in cut_into_shards(self._entries, self._limit, share):
            orphans = () if number else self._orphans
            yield CocoUnit(
                f"coco-{number:06d}", entries, self._long_side, self._exif_orientation, orphans
            )
