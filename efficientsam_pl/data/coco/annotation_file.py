"""Read COCO's and LVIS's annotation files, without rasterizing a mask.

Packing, finetuning and evaluation read a file by the same rules. Rasterizing COCO's polygons takes
three times as long as checking them (measured), and a rank rasterizes only the images of its own
shard.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from efficientsam_pl.data.coco.annotations import Crowds, UnrasterizedInstance, read_annotations
from efficientsam_pl.data.coco.categories import (
    Category,
    Kind,
    packed_categories,
    read_categories,
)
from efficientsam_pl.data.coco.findings import Findings
from efficientsam_pl.data.coco.images import ImageRules, read_images
from efficientsam_pl.data.coco.records import CocoError, record_lists
from efficientsam_pl.plural import counted
from efficientsam_pl.records import CorruptSample, InstanceImage
from efficientsam_pl.storage.files import exists, read_file

Purpose = Literal["evaluate", "pack"]
_KEYS: Mapping[Kind, tuple[tuple[str, ...], tuple[str, ...]]] = {  # required, optional
    "coco": (("images", "annotations"), ("categories",)),
    "lvis": (("images", "annotations", "categories"), ()),
}


@dataclass(frozen=True)
class UnrasterizedImage:
    """An image with its annotations; `absent` and `incomplete` as in InstanceImage."""

    id: int
    path: str
    image_hw: tuple[int, int]
    instances: tuple[UnrasterizedInstance, ...]
    exhaustive: bool
    absent: frozenset[int]
    incomplete: frozenset[int]

    def rasterize(self) -> InstanceImage:
        """Return the image with its masks."""
        return InstanceImage(
            self.id,
            self.path,
            self.image_hw,
            tuple(instance.rasterize(self.image_hw) for instance in self.instances),
            self.exhaustive,
            self.absent,
            self.incomplete,
        )


@dataclass(frozen=True)
class FileImage:
    """An image of an annotation file with the annotations that can be used.

    Args:
        number: The image's id, as a number.
        name: Its file name, as the file states it.
        path: The image file; where it does not exist, where it was expected.
        exists: Whether it exists; web servers list nothing: True.
        stated_hw: Height and width; None where the file states none. The masks are not checked
            then.
        instances: The annotations that can be used, in the file's order.
        lost: The kinds of annotations that cannot be used.
        absent: LVIS: categories that are known not to be there.
        incomplete: Categories with objects that have no usable annotation.
    """

    number: int
    name: str
    path: str
    exists: bool
    stated_hw: tuple[int, int] | None
    instances: tuple[UnrasterizedInstance, ...]
    lost: frozenset[str]
    absent: frozenset[int]
    incomplete: frozenset[int]


@dataclass(frozen=True)
class AnnotationFile:
    """The content of an annotation file, and what was noticed about it.

    Args:
        path: The file.
        kind: Its format.
        images: The images in the file's order, missing files included, one for each file.
        categories: The categories by rising number; a single one, "object", without `categories`.
        has_categories: Whether the file lists categories.
        image_numbers: Numbers of all listed images by canonical id (see `ids.canonical_id`).
        category_numbers: Numbers of the categories by canonical id.
        corrupt: Entries that cannot be used.
        notices: Repairs that lost nothing.
    """

    path: str
    kind: Kind
    images: tuple[FileImage, ...]
    categories: tuple[Category, ...]
    has_categories: bool
    image_numbers: Mapping[int | str, int]
    category_numbers: Mapping[int | str, int]
    corrupt: list[CorruptSample]
    notices: list[CorruptSample]

    def check_any_exists(self, folder: str) -> None:
        """Raise a CocoError where none of the image files exists; `folder` is named in it."""
        if not any(image.exists for image in self.images):
            raise CocoError(
                f"0 of {counted(len(self.images), 'image')} of {self.path} are in {folder}, such "
                f"as {self.images[0].path}"
            )

    def unrasterized(self) -> list[UnrasterizedImage]:
        """Return the images that exist and have a size, by rising number."""
        return [
            UnrasterizedImage(
                image.number,
                image.path,
                image.stated_hw,
                image.instances,
                self.kind == "coco",
                image.absent,
                image.incomplete,
            )
            for image in sorted(self.images, key=lambda image: image.number)
            if image.exists and image.stated_hw is not None
        ]


def annotation_bytes(annotations: str, images: str) -> bytes:
    """Read the bytes of a set's annotation file.

    Raises:
        CocoError: A missing file or folder.
    """
    for path in (annotations, images):
        if not exists(path):
            raise CocoError(f"no such file or folder: {path}")
    return read_file(annotations)


def parse_annotation_file(
    content: bytes,
    path: str,
    folder: str,
    kind: Kind = "coco",
    *,
    crowds: Crowds = "ignore",
    purpose: Purpose = "evaluate",
) -> AnnotationFile:
    """Parse an annotation file and locate its images.

    Args:
        content: The file's bytes.
        path: The file, for messages.
        folder: The folder of the images.
        kind: The format. LVIS's images lie by their `coco_url`, in train2017/ and val2017/ or in
            one folder, else by their `file_name`.
        crowds: Whether annotations with `iscrowd` are crowds or objects as any other.
        purpose: "pack" takes images without a stated size, and annotations of any category.

    Raises:
        CocoError: The file has another form, lists no image, no annotation of a listed image, one
            id for two files or two sizes of one image.
    """
    packing = purpose == "pack"
    required, optional = _KEYS["coco" if packing else kind]
    lists = record_lists(content, path, required, optional, lenient=packing)
    findings = Findings(path)
    named = lists["categories"]
    categories = (
        packed_categories(named, findings) if packing else read_categories(named, kind, findings)
    )
    rules = ImageRules(folder, kind, needs_size=not packing)
    listed = read_images(lists["images"], rules, categories, findings)
    known = read_annotations(lists["annotations"], listed, categories, crowds, findings)
    images = tuple(
        FileImage(
            image.number,
            image.name,
            image.path,
            image.exists,
            image.stated_hw,
            tuple(known[image.number].instances),
            known[image.number].lost,
            image.absent,
            image.incomplete | known[image.number].incomplete,
        )
        for image in listed.entries
    )
    return AnnotationFile(
        path,
        kind,
        images,
        categories.entries,
        categories.stated,
        listed.numbers,
        categories.numbers,
        findings.corrupt,
        findings.notices,
    )
