"""The images of an evaluation and the detections in them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from efficientsam_pl.commands.evaluate.config import EvaluateConfig
from efficientsam_pl.data.coco.annotation_file import Category
from efficientsam_pl.data.coco.detections import Detection, Detections, read_detections
from efficientsam_pl.data.coco.instances import InstanceSet, read_instances
from efficientsam_pl.data.datasets.image_sources import (
    AnnotatedImages,
    ImageFiles,
    PackedImages,
    images_sha256,
    shards_sha256,
)
from efficientsam_pl.data.shards import ShardSet, open_shards
from efficientsam_pl.records import CorruptSample, InstanceImage


@dataclass(frozen=True)
class EvaluationSet:
    """Images in a fixed order, which ranks share by place.

    `numbers` identify them. `annotated` is the set of COCO and LVIS, else `shards` is.
    """

    kind: str
    photos: AnnotatedImages
    numbers: tuple[int, ...]
    annotated: InstanceSet | None = None
    shards: ShardSet | None = None
    detections: Detections | None = None
    places: Mapping[int, int] = field(default_factory=dict)  # of numbers

    @property
    def categories(self) -> tuple[Category, ...]:
        """COCO's or LVIS's categories."""
        return () if self.annotated is None else self.annotated.categories

    def about(self, number: int) -> InstanceImage:
        """Return the annotations of an image that could be read."""
        if isinstance(self.photos, PackedImages):
            return self.photos.annotations(number)
        assert self.annotated is not None, "a set is packed or annotated"
        return self.annotated.images[self.places[number]]

    def boxes(self, number: int) -> tuple[Detection, ...]:
        """Return the detector's boxes in an image."""
        return () if self.detections is None else self.detections.get(number, ())

    def damage(self) -> list[tuple[str, str, str]]:
        """List corrupt samples that are known at the start, by kind, name and detail."""
        return [(sample.kind, name_of(sample), sample.detail) for sample in self.photos.corrupt]

    def identity(self) -> dict[str, Any]:
        """Hash the files: an evaluation can be continued with the same ones only."""
        hashes: dict[str, Any] = {"kind": self.kind, "photos": len(self.numbers)}
        if self.annotated is not None:
            hashes["annotations_sha256"] = self.annotated.sha256
        if self.shards is not None:
            hashes["shards_sha256"] = shards_sha256(self.shards)
        if self.detections is not None:
            hashes["detector_sha256"] = self.detections.sha256
        return hashes

    def content(self) -> str:
        """Hash the annotations in any order."""
        if self.shards is not None:
            return shards_sha256(self.shards)
        return images_sha256(map(self.about, self.numbers))


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
        packed = PackedImages(shards)
        numbers = tuple(packed.numbers[: config.photos])
        return EvaluationSet("shards", packed, numbers, shards=shards)
    assert config.annotations is not None, "it is among the config's needs"
    assert config.images is not None, "it is among the config's needs"
    annotated = read_instances(config.annotations, config.images, config.kind)
    ids = annotated.images.ids
    detections = None
    if config.detector.results is not None:
        detections = read_detections(config.detector.results, annotated)
    return EvaluationSet(
        config.kind,
        ImageFiles(annotated.images, ids, annotated.corrupt),
        ids[: config.photos],
        annotated=annotated,
        detections=detections,
        places={number: place for place, number in enumerate(ids)},
    )
