"""From slots to prepared samples: read, decode, choose, transform. One class a stage.

A sample that cannot be used keeps its slot: what is wrong with it is counted, never raised.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from efficientsam_pl.data.collate import (
    PreparedImage,
    PreparedMaskedImage,
    PreparedMasks,
    collate_images,
    collate_masked,
)
from efficientsam_pl.data.config import CropConfig, MaskSelectionConfig
from efficientsam_pl.data.decode import (
    Data,
    DecodedImage,
    decode_image,
    decode_smaller,
    image_size_of,
    jpeg_scale,
)
from efficientsam_pl.data.mask_sampling import random_clicks, select_masks, tight_boxes
from efficientsam_pl.data.reader import ReadSample, SampleReader
from efficientsam_pl.data.sampler import SampleRef
from efficientsam_pl.data.schema import (
    IMAGE_SUFFIXES,
    RECORD_ENDING,
    CorruptSampleError,
    Record,
    from_json,
)
from efficientsam_pl.data.transforms import (
    Crop,
    crop_of,
    crop_scale,
    cut,
    frame,
    mirror_boxes,
    mirror_points,
)
from efficientsam_pl.geometry import Resize, ResizeRule
from efficientsam_pl.keyed_random import sample_key, uniform_of
from efficientsam_pl.mask_coverage import half_covered
from efficientsam_pl.rle import Rle, run_lengths
from efficientsam_pl.structures import CorruptSample, ImageBatch, MaskBatch

T = TypeVar("T")
Prepared = TypeVar("Prepared")
LOSS_FACTOR = 4  # the mask decoder's logits are a quarter of the model's side
MASK_SUFFIXES = (*IMAGE_SUFFIXES, RECORD_ENDING)


class SampleFaultError(RuntimeError):
    """A fault of this program met at one sample; the message names shard and sample."""


def image_of(files: dict[str, memoryview]) -> Data:
    """The photo among a sample's files, still encoded.

    Raises:
        CorruptSampleError: There is none.
    """
    photo = next((files[suffix] for suffix in IMAGE_SUFFIXES if suffix in files), None)
    if photo is None:
        raise CorruptSampleError("missing photo", f"only {', '.join(sorted(files)) or 'nothing'}")
    return photo


def record_of(files: dict[str, memoryview]) -> Record:
    """The annotations among a sample's files.

    Raises:
        CorruptSampleError: There are none, or they cannot be read.
    """
    if RECORD_ENDING not in files:
        raise CorruptSampleError("missing json", f"only {', '.join(sorted(files)) or 'nothing'}")
    return from_json(bytes(files[RECORD_ENDING]))


def check_size(record: Record, image_hw: tuple[int, int]) -> None:
    """Raises CorruptSampleError where annotations belong to a photo of another size."""
    if image_hw != (record.height, record.width):
        raise CorruptSampleError(
            "size mismatch", f"photo {image_hw}, json {(record.height, record.width)}"
        )


def annotated(files: dict[str, memoryview]) -> tuple[UInt8[np.ndarray, "h w 3"], Record]:
    """A masked image as it is stored.

    Raises:
        CorruptSampleError: One of its files is missing or cannot be used.
    """
    image = decode_image(image_of(files))
    record = record_of(files)
    check_size(record, (image.shape[0], image.shape[1]))
    return image, record


def squares(
    data: Data, crops: Sequence[Crop], side: int, exact: bool
) -> Iterator[UInt8[Tensor, "3 s s"]]:
    """Crops of one photo resized to squares of `side` pixels, decoded once for each scale.

    Args:
        data: The photo.
        crops: In its pixels.
        side: Of the squares.
        exact: A JPEG is decoded at full size; if not, smaller where a crop needs no more.

    Raises:
        CorruptSampleError: The photo cannot be decoded.
    """
    photos: dict[int, DecodedImage] = {}
    for crop in crops:
        scale = jpeg_scale(1.0 if exact else crop_scale(crop, side))
        if scale not in photos:
            photos[scale] = decode_smaller(data, float(scale))
        yield cut(photos[scale], crop, side)


class SampleDataset(Dataset[Prepared], ABC, Generic[Prepared]):
    """What the stages share: a micro-batch is read at once, then prepared one by one."""

    def __init__(self, reader: SampleReader, seed: int) -> None:
        self._reader, self._seed = reader, seed

    def __getitem__(self, slot: SampleRef) -> Prepared:
        return self.__getitems__([slot])[0]

    def __getitems__(self, slots: Sequence[SampleRef]) -> list[Prepared]:
        read = self._reader.read(slots)
        return [self._prepared(slot, one) for slot, one in zip(slots, read, strict=True)]

    @abstractmethod
    def collate(self, samples: Sequence[Prepared]) -> Any:
        """A batch of what `__getitems__` gives."""

    @abstractmethod
    def _prepared(self, slot: SampleRef, read: ReadSample | None) -> Prepared: ...

    def _key(self, slot: SampleRef, read: ReadSample) -> int:
        return sample_key(self._seed, slot.epoch, read.sample.key)


class CropDataset(SampleDataset[PreparedImage]):
    """Pretraining: one random crop of a photo (crop None: the centre, for held-out photos)."""

    def __init__(
        self,
        reader: SampleReader,
        crop: CropConfig | None,
        side: int,
        seed: int,
        exact: bool = False,
    ) -> None:
        """A stream of squares of `side` pixels; `exact`: JPEGs are decoded at full size."""
        super().__init__(reader, seed)
        self._crop, self._side, self._exact = crop, side, exact

    def collate(self, samples: Sequence[PreparedImage]) -> ImageBatch:
        """A batch of what `__getitems__` gives."""
        return collate_images(samples, self._side)

    def _prepared(self, slot: SampleRef, read: ReadSample | None) -> PreparedImage:
        if read is None:
            return PreparedImage("", 0, None)
        key = self._key(slot, read)
        image, damage = catch_corrupt_sample(read, lambda: self._view(image_of(read.files), key))
        return PreparedImage(read.sample.key, key, image, damage)

    def _view(self, data: Data, key: int) -> UInt8[Tensor, "3 s s"]:
        crop = crop_of(image_size_of(data), self._crop, key)
        return next(squares(data, [crop], self._side, self._exact))


@dataclass(frozen=True)
class Frame:
    """The model's square and how a photo is laid into it; `exact`: decoded at full size."""

    side: int
    rule: ResizeRule
    exact: bool = False


class MaskDataset(SampleDataset[PreparedMaskedImage]):
    """Finetuning: a photo in the model's frame with some of its masks and points inside them."""

    def __init__(
        self, reader: SampleReader, selection: MaskSelectionConfig, to: Frame, seed: int
    ) -> None:
        super().__init__(reader, seed)
        self._selection, self._to = selection, to

    def collate(self, samples: Sequence[PreparedMaskedImage]) -> MaskBatch:
        """A batch of what `__getitems__` gives."""
        side, low = self._to.side, self._to.side // LOSS_FACTOR
        empty = PreparedMasks(
            image=torch.zeros(3, side, side, dtype=torch.uint8),
            content_hw=(side, side),
            masks=torch.zeros(0, low, low, dtype=torch.bool),
            boxes_xyxy_px=torch.zeros(0, 4),
            clicks_px=torch.zeros(0, self._selection.clicks, 2),
        )
        return collate_masked(samples, empty, self._selection.masks_per_image)

    def _prepared(self, slot: SampleRef, read: ReadSample | None) -> PreparedMaskedImage:
        if read is None:
            return PreparedMaskedImage("", 0, None)
        key = self._key(slot, read)
        content, damage = catch_corrupt_sample(read, lambda: self._content(read, key))
        return PreparedMaskedImage(read.sample.key, key, content, damage)

    def _content(self, read: ReadSample, key: int) -> PreparedMasks:
        data, record = image_of(read.files), record_of(read.files)
        image_hw = image_size_of(data)
        check_size(record, image_hw)
        rles, runs = foreground(select_masks(record, self._selection, key))
        boxes = tight_boxes(rles)
        clicks = random_clicks(runs, record.height, self._selection.clicks, key)
        mirrored = bool(uniform_of(key, 1, "flip")[0] < self._selection.flip)
        if mirrored:
            boxes, clicks = mirror_boxes(boxes, record.width), mirror_points(clicks, record.width)
        resize = Resize.fit(image_hw, self._to.side, self._to.rule)
        grid = resize.mask_grid(self._to.side // LOSS_FACTOR, mirrored)
        photo = decode_smaller(data, self._largest_scale(resize))
        return PreparedMasks(
            image=frame(photo.pixels, resize, mirrored),
            content_hw=resize.content_hw,
            masks=torch.from_numpy(half_covered(runs, grid)),
            boxes_xyxy_px=resize.boxes_forward(boxes),
            clicks_px=resize.points_forward(clicks),
        )

    def _largest_scale(self, resize: Resize) -> float:
        """1 where the resize has no antialiasing: a photo decoded smaller would look smoother."""
        return 1.0 if self._to.exact or resize.rule == "squash" else 1 / max(resize.scale_xy())


def foreground(rles: Sequence[Rle]) -> tuple[list[Rle], list[Int[np.ndarray, "_"]]]:
    """The masks that have a pixel, whatever area their file states, with their run lengths.

    Raises:
        CorruptSampleError: Run-lengths that cannot be read.
    """
    try:
        runs = run_lengths(rles)
    except ValueError as error:
        raise CorruptSampleError("bad mask", str(error)) from error
    real = [i for i, own in enumerate(runs) if own[1::2].any()]
    return [rles[i] for i in real], [runs[i] for i in real]


def catch_corrupt_sample(
    read: ReadSample, prepare: Callable[[], T]
) -> tuple[T | None, CorruptSample | None]:
    """What `prepare` makes of a sample, or what is wrong with the sample.

    Raises:
        SampleFaultError: Anything but damage.
    """
    shard, key = read.sample.shard, read.sample.key
    if read.damage is not None:
        return None, read.damage
    try:
        return prepare(), None
    except CorruptSampleError as error:
        return None, CorruptSample(shard, key, error.kind, error.detail)
    except Exception as error:
        raise SampleFaultError(f"{shard}: sample {key}: {error!r}") from error
