"""Finetuning dataset: each image in the model's frame with sampled masks, boxes and clicks."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from efficientsam_pl.data.collate import PreparedMaskedImage, PreparedMasks, collate_masked
from efficientsam_pl.data.config import MaskSelectionConfig
from efficientsam_pl.data.datasets.base import SampleDataset, catch_corrupt_sample
from efficientsam_pl.data.images.decode import decode_smaller
from efficientsam_pl.data.images.stated import orientation_to_apply
from efficientsam_pl.data.mask_sampling import (
    crop_record,
    nonempty_masks,
    random_clicks,
    select_masks,
    tight_boxes,
)
from efficientsam_pl.data.reader import ReadSample, SampleReader
from efficientsam_pl.data.sample_files import encoded_image, read_record
from efficientsam_pl.data.sampler import SampleRef
from efficientsam_pl.data.transforms import (
    Crop,
    cropped,
    frame,
    mirror_boxes,
    mirror_points,
    random_crop,
)
from efficientsam_pl.geometry import Resize, ResizeRule
from efficientsam_pl.keyed_random import uniform_of
from efficientsam_pl.mask_coverage import half_covered
from efficientsam_pl.structures import MaskBatch

_CELLS_PER_PATCH = 4  # the mask decoder upscales an image token to 4 x 4 logits


@dataclass(frozen=True)
class Frame:
    """The model's square and its resize rule; `exact`: images are decoded at full size."""

    side: int
    rule: ResizeRule
    exact: bool = False
    patch_size: int = 16

    def mask_cells(self) -> int:
        """Return the cells per side of the grid that masks are compared on: the logits'."""
        return _CELLS_PER_PATCH * (self.side // self.patch_size)


class MaskDataset(SampleDataset[PreparedMaskedImage]):
    """Finetuning: an image in the model's frame with sampled masks and points inside them."""

    def __init__(
        self, reader: SampleReader, selection: MaskSelectionConfig, to: Frame, seed: int
    ) -> None:
        super().__init__(reader, seed)
        self._selection, self._to = selection, to

    def collate(self, samples: Sequence[PreparedMaskedImage]) -> MaskBatch:
        """Collate the samples that `__getitems__` returns."""
        side, low = self._to.side, self._to.mask_cells()
        empty = PreparedMasks(
            image=torch.zeros(3, side, side, dtype=torch.uint8),
            content_hw=(side, side),
            masks=torch.zeros(0, low, low, dtype=torch.bool),
            boxes_xyxy_px=torch.zeros(0, 4),
            clicks_px=torch.zeros(0, self._selection.clicks, 2),
        )
        return collate_masked(samples, empty, self._selection.masks_per_image)

    def _prepared(self, sample_ref: SampleRef, read: ReadSample | None) -> PreparedMaskedImage:
        if read is None:
            return PreparedMaskedImage("", 0, None)
        key = self._key(sample_ref, read)
        content, corrupt = catch_corrupt_sample(read, lambda: self._content(read, key))
        return PreparedMaskedImage(read.sample.key, key, content, corrupt)

    def _content(self, read: ReadSample, key: int) -> PreparedMasks:
        data, record = encoded_image(read.files), read_record(read.files)
        image_hw = (record.height, record.width)
        orientation, _ = orientation_to_apply(data, image_hw)
        crop = self._crop(image_hw, key)
        if crop is not None:
            record = crop_record(record, crop, self._selection.crop.min_visible)
            image_hw = (crop.height, crop.width)
        rles, runs = nonempty_masks(select_masks(record, self._selection, key))
        boxes = tight_boxes(rles)
        clicks = random_clicks(runs, record.height, self._selection.clicks, key)
        mirrored = bool(uniform_of(key, 1, "flip")[0] < self._selection.flip)
        if mirrored:
            boxes, clicks = mirror_boxes(boxes, record.width), mirror_points(clicks, record.width)
        resize = Resize.fit(image_hw, self._to.side, self._to.rule)
        grid = resize.mask_grid(self._to.mask_cells(), mirrored)
        decoded = decode_smaller(data, self._largest_scale(resize), orientation)
        pixels = decoded.pixels if crop is None else cropped(decoded, crop)
        return PreparedMasks(
            image=frame(pixels, resize, mirrored),
            content_hw=resize.content_hw,
            masks=torch.from_numpy(half_covered(runs, grid)),
            boxes_xyxy_px=resize.boxes_forward(boxes),
            clicks_px=resize.points_forward(clicks),
        )

    def _crop(self, image_hw: tuple[int, int], key: int) -> Crop | None:
        """Draw the rectangle that is seen of an image; None: the whole image."""
        config = self._selection.crop
        return random_crop(image_hw, config.rectangle(), key) if config.crops() else None

    def _largest_scale(self, resize: Resize) -> float:
        """Return 1 where the resize has no antialiasing: decoding smaller would smooth it."""
        return 1.0 if self._to.exact or resize.rule == "squash" else 1 / max(resize.scale_xy())
