"""COCO-format instance sets for evaluation."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import overload

from efficientsam_pl.data.coco.annotation_file import (
    UnrasterizedImage,
    annotation_bytes,
    parse_annotation_file,
)
from efficientsam_pl.data.coco.annotations import Crowds
from efficientsam_pl.data.coco.categories import Category, Kind
from efficientsam_pl.records import CorruptSample, InstanceImage


class ImageTable(Sequence[InstanceImage]):
    """Images by rising id; an image's masks are rasterized on each access.

    Neither a slice nor `ids` nor `paths` rasterizes a mask.
    """

    def __init__(self, unrasterized: Sequence[UnrasterizedImage]) -> None:
        self._unrasterized = tuple(unrasterized)

    @property
    def ids(self) -> tuple[int, ...]:
        """Image ids, in order."""
        return tuple(image.id for image in self._unrasterized)

    @property
    def paths(self) -> tuple[str, ...]:
        """Image files, in order."""
        return tuple(image.path for image in self._unrasterized)

    @property
    def instances(self) -> int:
        """Number of instances in all images."""
        return sum(len(image.instances) for image in self._unrasterized)

    def sizes(self) -> dict[int, tuple[int, int]]:
        """Height and width by image id."""
        return {image.id: image.image_hw for image in self._unrasterized}

    def __len__(self) -> int:
        return len(self._unrasterized)

    @overload
    def __getitem__(self, place: int) -> InstanceImage: ...
    @overload
    def __getitem__(self, place: slice) -> ImageTable: ...
    def __getitem__(self, place: int | slice) -> InstanceImage | ImageTable:
        if isinstance(place, slice):
            return ImageTable(self._unrasterized[place])
        return self._unrasterized[place].rasterize()

    def __iter__(self) -> Iterator[InstanceImage]:
        return (image.rasterize() for image in self._unrasterized)


@dataclass(frozen=True)
class InstanceSet:
    """An annotated set whose image files exist.

    `corrupt` names the entries that cannot be used: missing image files, annotations without an
    image, of an unknown category, or whose mask cannot be rasterized. `notices` names repairs that
    lost nothing. Crowds and instances without a pixel are neither: metrics leave them out.
    `image_numbers` and `category_numbers` have the numbers of all listed images, missing ones
    included, and of the categories, by canonical id (see `ids.canonical_id`). Without
    `has_categories` the file lists none, and all instances are of one category.
    """

    annotations: str
    sha256: str
    kind: Kind
    images: ImageTable
    categories: tuple[Category, ...]
    image_numbers: Mapping[int | str, int]
    category_numbers: Mapping[int | str, int]
    corrupt: tuple[CorruptSample, ...] = ()
    notices: tuple[CorruptSample, ...] = ()
    has_categories: bool = True
    crowds: Crowds = "ignore"

    @property
    def listed(self) -> frozenset[int]:
        """Numbers of all listed images, missing ones included."""
        return frozenset(self.image_numbers.values())

    @property
    def skipped(self) -> dict[str, int]:
        """Number of corrupt entries of each kind."""
        return dict(sorted(Counter(sample.kind for sample in self.corrupt).items()))


def read_instances(
    annotations: str, images: str, kind: Kind, crowds: Crowds = "ignore"
) -> InstanceSet:
    """Read the images that an annotation file lists, with their instances.

    Args:
        annotations: COCO's or LVIS's (v0.5, v1) annotation file, wherever fsspec reaches.
        images: The image folder. COCO's images lie there by their `file_name`; LVIS's by their
            `coco_url`, in train2017/ and val2017/ or in one folder, else by their `file_name`.
        kind: The file's format. Read as COCO's, an LVIS file would make false positives of all
            objects that were not annotated.
        crowds: Whether annotations with `iscrowd` are crowds or objects as any other.

    Raises:
        UserError: A missing file or folder, a file that is no such annotation file (its name and
            the key that it lacks), no image file at all, or an id that stands for two images.
    """
    content = annotation_bytes(annotations, images)
    file = parse_annotation_file(content, annotations, images, kind, crowds=crowds)
    file.check_any_exists(images)
    return InstanceSet(
        annotations,
        hashlib.sha256(content).hexdigest(),
        kind,
        ImageTable(file.unrasterized()),
        file.categories,
        file.image_numbers,
        file.category_numbers,
        tuple(file.corrupt),
        tuple(file.notices),
        file.has_categories,
        crowds,
    )
