"""COCO-format instance sets for evaluation."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

from efficientsam_pl.data.coco.annotation_file import (
    AnnotationFile,
    Category,
    Kind,
    UnrasterizedImage,
)
from efficientsam_pl.data.packing.coco import annotation_file
from efficientsam_pl.records import CorruptSample, InstanceImage


class ImageTable(Sequence[InstanceImage]):
    """Images by rising id; an image's masks are rasterized on each access.

    Neither a slice nor `ids` rasterizes a mask.
    """

    def __init__(self, unrasterized: Sequence[UnrasterizedImage]) -> None:
        self._unrasterized = tuple(unrasterized)

    @property
    def ids(self) -> tuple[int, ...]:
        """Image ids, in order."""
        return tuple(image.id for image in self._unrasterized)

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
    image, of an unknown category, or whose mask cannot be rasterized. Crowds and instances without
    a pixel are not corrupt: metrics leave them out. `listed` has the ids of all images in the
    file, including missing ones.
    """

    annotations: str
    sha256: str
    kind: Kind
    images: ImageTable
    categories: tuple[Category, ...]
    listed: frozenset[int]
    corrupt: tuple[CorruptSample, ...] = ()

    @property
    def skipped(self) -> dict[str, int]:
        """Number of corrupt entries of each kind."""
        return dict(sorted(Counter(sample.kind for sample in self.corrupt).items()))


def read_instances(annotations: str, images: str, kind: Kind) -> InstanceSet:
    """Read the images that an annotation file lists, with their instances.

    Args:
        annotations: COCO's or LVIS's (v0.5, v1) annotation file, wherever fsspec reaches.
        images: The image folder. COCO's images lie there by their `file_name`; LVIS's by their
            `coco_url`, in train2017/ and val2017/ or in one folder, else by their `file_name`.
        kind: The file's format. Read as COCO's, an LVIS file would make false positives of all
            objects that were not annotated.

    Raises:
        UserError: A missing file or folder, a file that is no such annotation file (its name and
            the key that it lacks), or no image file at all.
    """
    content = annotation_file(annotations, images)
    file = AnnotationFile.parsed(content, annotations, kind)
    table = ImageTable(file.unrasterized(file.paths(images)))
    return InstanceSet(
        annotations,
        hashlib.sha256(content).hexdigest(),
        kind,
        table,
        file.categories,
        frozenset(file.images),
        tuple(file.corrupt),
    )
