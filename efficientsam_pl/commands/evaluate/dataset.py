"""The images of an evaluation and the detections in them."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from efficientsam_pl.commands.evaluate.config import EvaluateConfig
from efficientsam_pl.data.coco.categories import Category
from efficientsam_pl.data.coco.detections import Detection, Detections, read_detections
from efficientsam_pl.data.coco.findings import count_lines
from efficientsam_pl.data.coco.instances import InstanceSet, read_instances
from efficientsam_pl.data.datasets.image_sources import (
    AnnotatedImages,
    ImageFiles,
    ImageFingerprint,
    PackedImages,
    annotations_sha256,
    sha256_of_all,
    shards_sha256,
)
from efficientsam_pl.data.images.stated import ExifOrientation, exif_setting
from efficientsam_pl.data.shards import ShardSet, open_shards
from efficientsam_pl.errors import UserError
from efficientsam_pl.records import CorruptSample, InstanceImage


@dataclass(frozen=True)
class EvaluationSet:
    """Images in a fixed order, which ranks share by place.

    `numbers` identify them; `listed` counts also those that are missing. `annotated` is the set of
    COCO and LVIS, else `shards` is.
    """

    kind: str
    photos: AnnotatedImages
    numbers: tuple[int, ...]
    listed: int
    annotated: InstanceSet | None = None
    shards: ShardSet | None = None
    detections: Detections | None = None
    places: Mapping[int, int] = field(default_factory=dict)  # of numbers
    exif_orientation: ExifOrientation = "apply"

    @property
    def categories(self) -> tuple[Category, ...]:
        """COCO's or LVIS's categories."""
        return () if self.annotated is None else self.annotated.categories

    def about(self, number: int) -> InstanceImage:
        """Return the annotations of an image that could be read."""
        if isinstance(self.photos, PackedImages):
            return self.photos.annotations(number)
        assert self.annotated is not None, "a set is packed or annotated"
        return self.annotated.images[self.place(number)]

    def place(self, number: int) -> int:
        """Return the index at which an image is read."""
        return number if self.annotated is None else self.places[number]

    def is_there(self, number: int) -> bool:
        """Return whether the image is at hand; shards list lost images, too."""
        return self.annotated is None or number in self.places

    def fingerprint(self, number: int) -> ImageFingerprint:
        """Read and hash the stored bytes of an image."""
        return self.photos.fingerprint(self.place(number))

    def boxes(self, number: int) -> tuple[Detection, ...]:
        """Return the detector's boxes in an image."""
        return () if self.detections is None else self.detections.get(number, ())

    def damage(self) -> list[tuple[str, str, str]]:
        """List corrupt samples that are known at the start, by kind, name and detail."""
        return [(sample.kind, name_of(sample), sample.detail) for sample in self.photos.corrupt]

    def findings(self) -> list[str]:
        """Count what was noticed about the annotation file by kind, one line with an example."""
        if self.annotated is None:
            return []
        return count_lines([*self.annotated.corrupt, *self.annotated.notices])

    def identity(self) -> dict[str, Any]:
        """Hash the files: an evaluation can be continued with the same ones only.

        An image that was missing may appear; the others are compared with their records.
        """
        hashes: dict[str, Any] = {
            "kind": self.kind,
            "photos": self.listed,
            **exif_setting(self.exif_orientation),
        }
        if self.annotated is not None:
            hashes["annotations_sha256"] = self.annotated.sha256
            if self.annotated.crowds != "ignore":
                hashes["crowds"] = self.annotated.crowds
        if self.shards is not None:
            hashes["shards_sha256"] = shards_sha256(self.shards)
        if self.detections is not None:
            hashes["detector_sha256"] = self.detections.sha256
        return hashes

    def content(self) -> str:
        """Hash the annotations in any order."""
        if self.shards is not None:
            return shards_sha256(self.shards)
        return annotations_sha256(map(self.about, self.numbers))

    def images_sha256(self, hashes: Mapping[int, str]) -> str:
        """Hash the scored images by their names in the set, in any order.

        Args:
            hashes: Hashes of their bytes by number.
        """
        return sha256_of_all(f"{self._name(number)} {value}" for number, value in hashes.items())

    def _name(self, number: int) -> str:
        """Name an image alike wherever the shards lie and in whichever order."""
        return str(number) if self.shards is None else self.shards.sample(number).key


def name_of(sample: CorruptSample) -> str:
    """Name a corrupt sample without its folder."""
    return f"{Path(sample.shard).name} {sample.key}".strip()


def open_set(config: EvaluateConfig) -> EvaluationSet:
    """Open the set that a config names.

    Raises:
        UserError: One of its files is missing, or none of its kind.
    """
    if config.kind == "shards":
        shards = open_shards(config.shards)
        packed = PackedImages(shards, config.exif_orientation)
        numbers = tuple(packed.numbers[: config.photos])
        return EvaluationSet(
            "shards",
            packed,
            numbers,
            len(numbers),
            shards=shards,
            exif_orientation=config.exif_orientation,
        )
    assert config.annotations is not None, "it is among the config's needs"
    assert config.images is not None, "it is among the config's needs"
    annotated = read_instances(config.annotations, config.images, config.kind, config.crowds)
    ids = annotated.images.ids
    detections = None
    if config.detector.results is not None:
        if not annotated.has_categories:
            raise UserError(
                f"{config.annotations} lists no category, and detections are scored by category: "
                f"leave out detector.results={config.detector.results}, or name the categories"
            )
        detections = read_detections(
            config.detector.results,
            annotated,
            config.detector.box_format,
            config.detector.max_unusable,
        )
    paths, exif_orientation = annotated.images.paths, config.exif_orientation
    return EvaluationSet(
        config.kind,
        ImageFiles(annotated.images, ids, paths, annotated.corrupt, exif_orientation),
        ids[: config.photos],
        min(len(annotated.image_numbers), config.photos or sys.maxsize),
        annotated=annotated,
        detections=detections,
        places={number: place for place, number in enumerate(ids)},
        exif_orientation=config.exif_orientation,
    )
