"""Images with the objects to detect: jittered for training, whole for scoring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from efficientsam_pl.data.coco.categories import Category
from efficientsam_pl.data.collate import stack_images
from efficientsam_pl.data.datasets.base import SampleDataset, catch_corrupt_sample
from efficientsam_pl.data.datasets.image_sources import instance_image
from efficientsam_pl.data.detection_config import JitterConfig
from efficientsam_pl.data.detection_transforms import (
    Placement,
    large_scale_jitter,
    place_image,
    place_masks,
    tight_edges,
    whole_image,
)
from efficientsam_pl.data.images.decode import decode_smaller
from efficientsam_pl.data.images.stated import orientation_to_apply
from efficientsam_pl.data.reader import ReadSample, SampleReader
from efficientsam_pl.data.sample_files import encoded_image, read_record
from efficientsam_pl.data.sampler import SampleRef
from efficientsam_pl.data.schema import CorruptSampleError, Record
from efficientsam_pl.records import CorruptSample, InstanceImage
from efficientsam_pl.structures import DetectionBatch

ClassNumbers = Mapping[int, int]  # of categories, by their ids


def class_numbers(categories: Sequence[Category]) -> dict[int, int]:
    """Map the categories' ids to class numbers, in the order of their list."""
    return {category.id: number for number, category in enumerate(categories)}


def classified_image(key: str, record: Record, numbers: ClassNumbers) -> InstanceImage:
    """Convert a record to instances whose category is the class number, crowds included.

    Raises:
        CorruptSampleError: A category that is not in the list, none at all, or bad run-lengths.
    """
    image = instance_image(key, record)
    classes = []
    for place, annotation in enumerate(record.annotations):
        if annotation.category_id is None:
            raise CorruptSampleError("missing category", f"annotation {place} has none")
        if annotation.category_id not in numbers:
            detail = f"category {annotation.category_id} of annotation {place} is not in the list"
            raise CorruptSampleError("unknown category", detail)
        classes.append(numbers[annotation.category_id])
    instances = zip(image.instances, classes, strict=True)
    return replace(image, instances=tuple(replace(i, category_id=c) for i, c in instances))


class JitteredView:
    """Large-scale jitter: what a key says. Images are decoded smaller where that is enough."""

    def __init__(self, side: int, config: JitterConfig, exact: bool = False) -> None:
        """Draw squares of `side` pixels; `exact`: JPEGs are decoded at full size."""
        self.side, self._config, self._exact = side, config, exact

    def placement(self, image_hw: tuple[int, int], key: int) -> Placement:
        """Draw the placement of an image."""
        return large_scale_jitter(image_hw, self.side, self._config, key)

    def largest_scale(self, image_hw: tuple[int, int], placement: Placement) -> float:
        """Return the factor by which the image may be decoded smaller."""
        if self._exact:
            return 1.0
        return min(
            image / resized for image, resized in zip(image_hw, placement.resized_hw, strict=True)
        )

    def teaches(self, image: InstanceImage) -> bool:
        """Return whether an image counts in training."""
        return self._config.empty_images == "keep" or any(not i.crowd for i in image.instances)


class WholeView:
    """The whole image, its longest side as long as the frame's, as detectors score it."""

    def __init__(self, side: int) -> None:
        self.side = side

    def placement(self, image_hw: tuple[int, int], key: int) -> Placement:
        """Return the placement of an image; the key decides nothing."""
        return whole_image(image_hw, self.side)

    def largest_scale(self, image_hw: tuple[int, int], placement: Placement) -> float:
        """Return 1: as for prediction, the image is decoded at full size."""
        return 1.0

    def teaches(self, image: InstanceImage) -> bool:
        """Return True: every image is scored."""
        return True


@dataclass(frozen=True)
class PreparedObjects:
    """An image in the frame with its objects, and its annotations at the image's size."""

    image: UInt8[Tensor, "3 s s"]
    content_hw: tuple[int, int]
    boxes_xyxy_px: Float[Tensor, "n 4"]
    classes: Int64[Tensor, "n"]
    masks: Bool[Tensor, "n s s"]
    annotations: InstanceImage | None = None
    teaches: bool = True


@dataclass(frozen=True)
class PreparedDetection:
    """A sample; `content` is None for padding and corrupt samples."""

    key: str
    sample_key: int
    content: PreparedObjects | None
    corrupt: CorruptSample | None = None


class DetectionDataset(SampleDataset[PreparedDetection]):
    """Images with boxes, masks and class numbers of their objects, seen through a view.

    Objects without a pixel in the frame are left out, and crowds, which only `annotations` have.
    """

    def __init__(
        self,
        reader: SampleReader,
        view: JitteredView | WholeView,
        categories: Sequence[Category],
        seed: int,
    ) -> None:
        super().__init__(reader, seed)
        self._view, self._numbers = view, class_numbers(categories)

    def collate(self, samples: Sequence[PreparedDetection]) -> DetectionBatch:
        """Collate the samples that `__getitems__` returns."""
        empty = _nothing(self._view.side)
        contents = [empty if sample.content is None else sample.content for sample in samples]
        valid = [s.content is not None and s.content.teaches for s in samples]
        return DetectionBatch(
            image=stack_images([content.image for content in contents]),
            content_hw=torch.tensor([content.content_hw for content in contents]),
            boxes_xyxy_px=torch.cat([content.boxes_xyxy_px for content in contents]),
            classes=torch.cat([content.classes for content in contents]),
            masks=torch.cat([content.masks for content in contents]),
            objects_per_image=tuple(len(content.classes) for content in contents),
            valid=torch.tensor(valid),
            sample_key=torch.tensor([sample.sample_key for sample in samples]),
            key=tuple(sample.key for sample in samples),
            corrupt=tuple(s.corrupt for s in samples if s.corrupt is not None),
            annotations=tuple(content.annotations for content in contents),
        )

    def _prepared(self, sample_ref: SampleRef, read: ReadSample | None) -> PreparedDetection:
        if read is None:
            return PreparedDetection("", 0, None)
        key = self._key(sample_ref, read)
        content, corrupt = catch_corrupt_sample(read, lambda: self._content(read, key))
        return PreparedDetection(read.sample.key, key, content, corrupt)

    def _content(self, read: ReadSample, key: int) -> PreparedObjects:
        data, record = encoded_image(read.files), read_record(read.files)
        annotations = classified_image(read.sample.key, record, self._numbers)
        image_hw = annotations.image_hw
        orientation, _ = orientation_to_apply(data, image_hw)
        placement = self._view.placement(image_hw, key)
        largest = self._view.largest_scale(image_hw, placement)
        pixels = decode_smaller(data, largest, orientation).pixels
        prepared = prepare_objects(annotations, placement, self._view.side)
        image = place_image(pixels, placement, self._view.side)
        return replace(
            prepared,
            image=torch.from_numpy(image).permute(2, 0, 1),
            annotations=annotations if isinstance(self._view, WholeView) else None,
            teaches=self._view.teaches(annotations),
        )


def prepare_objects(image: InstanceImage, placement: Placement, side: int) -> PreparedObjects:
    """Place the objects of an image in a frame, without its pixels."""
    objects = [instance for instance in image.instances if not instance.crowd]
    masks, kept = place_masks([instance.mask for instance in objects], placement, side)
    return replace(
        _nothing(side),
        content_hw=placement.content_hw,
        boxes_xyxy_px=torch.from_numpy(tight_edges(masks)),
        classes=torch.tensor([objects[at].category_id for at in kept.tolist()], dtype=torch.int64),
        masks=torch.from_numpy(masks),
    )


def _nothing(side: int) -> PreparedObjects:
    return PreparedObjects(
        image=torch.zeros(3, side, side, dtype=torch.uint8),
        content_hw=(side, side),
        boxes_xyxy_px=torch.zeros(0, 4),
        classes=torch.zeros(0, dtype=torch.int64),
        masks=torch.zeros(0, side, side, dtype=torch.bool),
    )
