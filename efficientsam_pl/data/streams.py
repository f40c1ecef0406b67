"""From a slot to a prepared sample: read, decode, choose, transform. One class a stage.

A sample that cannot be used keeps its slot: what is wrong with it is counted, never raised.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import UInt8
from torch.utils.data import Dataset

from efficientsam_pl.data.collate import (
    PreparedImage,
    PreparedMaskedImage,
    PreparedMasks,
    collate_images,
    collate_masked,
)
from efficientsam_pl.data.config import CropConfig, MaskSelectionConfig
from efficientsam_pl.data.decode import decode_mask, decode_photo
from efficientsam_pl.data.order import Slot
from efficientsam_pl.data.schema import DamagedSampleError, Record, from_json
from efficientsam_pl.data.select import random_clicks, select_masks, tight_boxes
from efficientsam_pl.data.shards import Sample, read_files
from efficientsam_pl.data.transforms import (
    centre_crop,
    cut,
    frame,
    mirror_boxes,
    mirror_points,
    random_crop,
    reduce_masks,
)
from efficientsam_pl.draws import draw_key, uniform
from efficientsam_pl.geometry import Resize, ResizeRule
from efficientsam_pl.structures import Damage, ImageBatch, MaskBatch

T = TypeVar("T")
_PHOTO_ENDINGS = ("jpg", "jpeg", "png")
LOSS_FACTOR = 4  # the mask decoder's logits are a quarter of the model's side


def read_photo(files: dict[str, bytes]) -> UInt8[np.ndarray, "h w 3"]:
    """The photo among a sample's files.

    Raises:
        DamagedSampleError: There is none, or it cannot be decoded.
    """
    photo = next((files[ending] for ending in _PHOTO_ENDINGS if ending in files), None)
    if photo is None:
        raise DamagedSampleError("missing photo", f"only {', '.join(sorted(files))}")
    return decode_photo(photo)


def read_record(files: dict[str, bytes], image: UInt8[np.ndarray, "h w 3"]) -> Record:
    """The annotations among a sample's files.

    Raises:
        DamagedSampleError: There are none, or they belong to a photo of another size.
    """
    if "json" not in files:
        raise DamagedSampleError("missing json", f"only {', '.join(sorted(files))}")
    record = from_json(files["json"])
    if image.shape[:2] != (record.height, record.width):
        raise DamagedSampleError(
            "size mismatch", f"photo {image.shape[:2]}, json {(record.height, record.width)}"
        )
    return record


class CroppedImages(Dataset[PreparedImage]):
    """Pretraining: one random crop of a photo (crop None: the centre, for held-out photos)."""

    def __init__(
        self, samples: Sequence[Sample], crop: CropConfig | None, side: int, seed: int
    ) -> None:
        self._samples, self._crop, self._side, self._seed = samples, crop, side, seed

    def __getitem__(self, slot: Slot) -> PreparedImage:
        if slot.sample is None:
            return PreparedImage("", 0, None)
        sample = self._samples[slot.sample]
        key = draw_key(self._seed, slot.epoch, sample.key)
        image, damage = _guarded(sample, partial(self._prepare, sample, key))
        return PreparedImage(sample.key, key, image, damage)

    def collate(self, samples: Sequence[PreparedImage]) -> ImageBatch:
        """A batch of what `__getitem__` gives."""
        return collate_images(samples, self._side)

    def _prepare(self, sample: Sample, key: int) -> torch.Tensor:
        photo = read_photo(read_files(sample))
        hw = (photo.shape[0], photo.shape[1])
        where = centre_crop(hw) if self._crop is None else random_crop(hw, self._crop, key)
        return cut(photo, where, self._side)


class MaskedImages(Dataset[PreparedMaskedImage]):
    """Finetuning: a photo in the model's frame with some of its masks and points inside them."""

    def __init__(
        self,
        samples: Sequence[Sample],
        selection: MaskSelectionConfig,
        side: int,
        rule: ResizeRule,
        seed: int,
    ) -> None:
        self._samples, self._selection = samples, selection
        self._side, self._rule, self._seed = side, rule, seed

    def __getitem__(self, slot: Slot) -> PreparedMaskedImage:
        if slot.sample is None:
            return PreparedMaskedImage("", 0, None)
        sample = self._samples[slot.sample]
        key = draw_key(self._seed, slot.epoch, sample.key)
        content, damage = _guarded(sample, partial(self._prepare, sample, key))
        return PreparedMaskedImage(sample.key, key, content, damage)

    def collate(self, samples: Sequence[PreparedMaskedImage]) -> MaskBatch:
        """A batch of what `__getitem__` gives."""
        low, clicks = self._side // LOSS_FACTOR, self._selection.clicks
        empty = PreparedMasks(
            image=torch.zeros(3, self._side, self._side, dtype=torch.uint8),
            content_hw=(self._side, self._side),
            masks=torch.zeros(0, low, low, dtype=torch.bool),
            boxes_xyxy_px=torch.zeros(0, 4),
            clicks_px=torch.zeros(0, clicks, 2),
        )
        return collate_masked(samples, empty, self._selection.masks_per_image)

    def _prepare(self, sample: Sample, key: int) -> PreparedMasks:
        files = read_files(sample)
        photo = read_photo(files)
        record = read_record(files, photo)
        rles = select_masks(record, self._selection, key)
        masks = np.zeros((len(rles), record.height, record.width), dtype=bool)
        for index, rle in enumerate(rles):
            masks[index] = decode_mask(rle)
        boxes = tight_boxes(rles)
        clicks = random_clicks(rles, self._selection.clicks, key)
        if float(uniform(torch.tensor(key), 1, "flip")) < self._selection.flip:
            photo, masks = photo[:, ::-1].copy(), masks[:, :, ::-1].copy()
            boxes, clicks = mirror_boxes(boxes, record.width), mirror_points(clicks, record.width)
        resize = Resize.fit((record.height, record.width), self._side, self._rule)
        return PreparedMasks(
            image=frame(photo, resize),
            content_hw=resize.content_hw,
            masks=reduce_masks(masks, resize, LOSS_FACTOR),
            boxes_xyxy_px=resize.boxes_forward(boxes),
            clicks_px=resize.points_forward(clicks),
        )


def _guarded(sample: Sample, prepare: Callable[[], T]) -> tuple[T | None, Damage | None]:
    try:
        return prepare(), None
    except DamagedSampleError as error:
        return None, Damage(sample.shard, sample.key, error.kind)
    except OSError as error:
        return None, Damage(sample.shard, sample.key, f"cannot be read: {error}")
