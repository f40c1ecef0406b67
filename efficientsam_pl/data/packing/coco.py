"""Pack COCO-format sets as masked images: polygons, run-lengths and crowds."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from efficientsam_pl.data.coco.annotation_file import (
    FileImage,
    annotation_bytes,
    parse_annotation_file,
)
from efficientsam_pl.data.coco.annotations import Crowds, UnrasterizedInstance
from efficientsam_pl.data.coco.categories import NO_CATEGORY, Category
from efficientsam_pl.data.coco.findings import MISSING_IMAGE, count_lines
from efficientsam_pl.data.coco.segmentation import BROKEN, reason_of
from efficientsam_pl.data.images.stated import ExifOrientation, decode_stated, exif_setting
from efficientsam_pl.data.packing.images import (
    JPEG_QUALITY,
    MaskedImage,
    limit_side,
    packed_sample,
    stored_jpeg,
)
from efficientsam_pl.data.packing.runner import ArrayShare, cut_into_shards
from efficientsam_pl.data.packing.sample_keys import sample_key
from efficientsam_pl.data.packing.sources import SourceDigests, SourceNote, SourcePart
from efficientsam_pl.data.packing.writer import IndexNote, PackedSample, Skipped
from efficientsam_pl.data.schema import Annotation, CorruptSampleError, annotation_of
from efficientsam_pl.records import CorruptSample
from efficientsam_pl.rle import from_coco, run_lengths
from efficientsam_pl.storage.files import read_file

CATEGORIES = "categories"  # of an index note and of the summary


@dataclass(frozen=True)
class CocoEntry:
    """An image of the set with the annotations that can be used, not rasterized yet.

    `lost` are the kinds of its annotations that cannot be used. Without `has_categories` the
    file lists no categories, and the annotations' numbers mean nothing.
    """

    key: str
    path: str
    annotations: tuple[UnrasterizedInstance, ...]
    stated_hw: tuple[int, int] | None = None
    exists: bool = True
    lost: frozenset[str] = frozenset()
    has_categories: bool = False

    def category_id(self, annotation: UnrasterizedInstance) -> int | None:
        """Return the category's number; None where there is none."""
        known = self.has_categories and annotation.category_id != NO_CATEGORY
        return annotation.category_id if known else None


@dataclass(frozen=True)
class CocoSet:
    """The images of an annotation file in its order, and what was noticed about the file.

    `categories` are by rising number; () for a file without.
    """

    entries: tuple[CocoEntry, ...]
    corrupt: tuple[CorruptSample, ...] = ()
    notices: tuple[CorruptSample, ...] = ()
    categories: tuple[Category, ...] = ()

    def skipped(self) -> list[Skipped]:
        """List the entries that cannot be used; missing images are noticed when they are read."""
        return [
            Skipped(sample.key, f"{sample.kind}: {sample.detail}")
            for sample in sorted(self.corrupt, key=lambda sample: sample.key)
            if sample.kind != MISSING_IMAGE
        ]

    def findings(self) -> list[str]:
        """Count what was noticed by kind, one line each with an example."""
        return count_lines([*self.corrupt, *self.notices])


def read_coco(
    annotations: str, images: str, option: str = "--images", crowds: Crowds = "ignore"
) -> CocoSet:
    """Read the images of a set, see `parse_coco`."""
    return parse_coco(annotation_bytes(annotations, images), annotations, images, option, crowds)


def parse_coco(
    content: bytes, annotations: str, images: str, option: str, crowds: Crowds
) -> CocoSet:
    """Parse an annotation file for packing.

    Args:
        content: The file's bytes.
        annotations: The file, for messages.
        images: The folder of the images.
        option: The user's option or key for the folder, for messages.
        crowds: Whether annotations with `iscrowd` are crowds or objects as any other.

    Raises:
        CocoError: The file cannot be used, or none of its images exists.
    """
    file = parse_annotation_file(content, annotations, images, crowds=crowds, purpose="pack")
    file.check_any_exists(f"{option}={images}")
    return CocoSet(
        _entries(file.images, file.has_categories),
        tuple(file.corrupt),
        tuple(file.notices),
        file.categories if file.has_categories else (),
    )


def _entries(images: Sequence[FileImage], has_categories: bool) -> tuple[CocoEntry, ...]:
    """Give the images keys, from their names and, where those are equal, from their ids."""
    entries: dict[str, CocoEntry] = {}
    for image in images:
        key = sample_key(PurePosixPath(image.name.replace("\\", "/")).stem)
        while key in entries:  # a/1.jpg and b/1.jpg: one key would make them one sample
            key = f"{key}_{image.number}"
        entries[key] = CocoEntry(
            key,
            image.path,
            image.instances,
            image.stated_hw,
            image.exists,
            image.lost,
            has_categories,
        )
    return tuple(entries.values())


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
        try:
            rle = from_coco(annotation.segmentation, height, width)
            run_lengths([rle])
        except BROKEN as error:  # of an image without a stated size, whose masks are unchecked
            what = f"{entry.key} annotation {annotation.id}"
            skipped.append(Skipped(what, reason_of(error)))
            continue
        masks.append(annotation_of(rle, annotation.crowd, entry.category_id(annotation)))
    return MaskedImage(entry.key, image.pixels, tuple(masks), turn=image.turn), skipped


def masked_images(
    entries: Iterable[CocoEntry],
    exif_orientation: ExifOrientation = "apply",
    digests: SourceDigests | None = None,
) -> Iterator[tuple[CocoEntry, MaskedImage, bytes | None] | Skipped]:
    """Yield the images with their masks and the JPEG to keep, if any, and the skipped ones.

    The checksums of the files are added to `digests`.
    """
    digests = SourceDigests() if digests is None else digests
    for entry in entries:
        try:
            data = read_file(entry.path)
            digests.add_file(entry.path, data)
            image, skipped = masked_image(entry, data, exif_orientation)
        except (OSError, CorruptSampleError) as error:
            digests.mark_broken(entry.path)
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


def coco_sources(entries: Iterable[CocoEntry]) -> list[SourcePart]:
    """List the image files of a shard, each once."""
    return [SourcePart(path) for path in dict.fromkeys(entry.path for entry in entries)]


@dataclass
class MaskCounts:
    """Masks among those of a shard that are no objects to learn, and whether all have numbers."""

    crowds: int = 0
    empty_masks: int = 0
    categories: int = 0  # of the set, whose numbers the masks have

    def add(self, annotations: Iterable[Annotation]) -> None:
        """Count an image's."""
        for annotation in annotations:
            self.crowds += annotation.crowd
            self.empty_masks += not annotation.crowd and annotation.area == 0

    def notes(self) -> Iterator[IndexNote]:
        """Yield the note for the shard's index, if there is anything to note."""
        if self.crowds or self.empty_masks:
            yield IndexNote({"crowds": self.crowds, "empty_masks": self.empty_masks})
        if self.categories:
            yield IndexNote({CATEGORIES: self.categories})


def crowds_setting(crowds: Crowds) -> dict[str, str]:
    """Return the entry of a pack note: none for the default, so that older notes compare equal."""
    return {} if crowds == "ignore" else {"crowds": crowds}


@dataclass(frozen=True)
class CocoUnit:
    """The images of one shard."""

    name: str
    entries: tuple[CocoEntry, ...]
    long_side: int | None
    exif_orientation: ExifOrientation = "apply"
    skipped: tuple[Skipped, ...] = ()  # entries of the file, reported with the first shard
    categories: int = 0  # of the set

    @property
    def weight(self) -> int:
        """Number of images."""
        return len(self.entries)

    def sources(self) -> list[SourcePart]:
        """See TracksSources."""
        return coco_sources(self.entries)

    def samples(self) -> Iterator[PackedSample | Skipped | IndexNote | SourceNote]:
        """See Unit."""
        yield from self.skipped
        counts, digests = MaskCounts(categories=self.categories), SourceDigests()
        for result in masked_images(self.entries, self.exif_orientation, digests):
            if isinstance(result, Skipped):
                yield result
                continue
            _, image, jpeg = result
            counts.add(image.annotations)
            small = image if self.long_side is None else limit_side(image, self.long_side)
            yield packed_sample(small, jpeg if small is image else None)
        yield from counts.notes()
        yield from digests.notes()


class Coco:
    """A COCO-format set in shards `coco-000000.tar`, ...; JPEGs are kept where nothing shrinks."""

    def __init__(
        self,
        annotations: str,
        images: str,
        long_side: int | None,
        samples_per_shard: int,
        exif_orientation: ExifOrientation = "apply",
        crowds: Crowds = "ignore",
    ) -> None:
        content = annotation_bytes(annotations, images)
        self._set = parse_coco(content, annotations, images, "--images", crowds)
        self._exif_orientation = exif_orientation
        self._digest = hashlib.sha256(content).hexdigest()[:16]
        self._long_side, self._limit, self._crowds = long_side, samples_per_shard, crowds

    def findings(self) -> list[str]:
        """Count what was noticed about the file by kind, one line each with an example."""
        return self._set.findings()

    def categories(self) -> tuple[Category, ...]:
        """See Categorised."""
        return self._set.categories

    def described(self) -> dict[str, Any]:
        """See Source."""
        return {
            "kind": "coco",
            "annotations": self._digest,
            "photos": len(self._set.entries),
            "long_side": self._long_side,
            "jpeg_quality": JPEG_QUALITY,
            "samples_per_shard": self._limit,
            **exif_setting(self._exif_orientation),
            **crowds_setting(self._crowds),
        }

    def weight(self, share: ArrayShare) -> int:
        """Count the images of the share."""
        return sum(unit.weight for unit in self.units(share))

    def units(self, share: ArrayShare) -> Iterator[CocoUnit]:
        """See Source."""
        skipped = tuple(self._set.skipped())
        for number, entries in cut_into_shards(self._set.entries, self._limit, share):
            first = () if number else skipped
            name = f"coco-{number:06d}"
            yield CocoUnit(
                name,
                entries,
                self._long_side,
                self._exif_orientation,
                first,
                len(self._set.categories),
            )
