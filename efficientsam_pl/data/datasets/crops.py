"""Pretraining dataset: one crop of each image."""

from collections.abc import Iterator, Sequence

from jaxtyping import UInt8
from torch import Tensor

from efficientsam_pl.data.collate import PreparedImage, collate_images
from efficientsam_pl.data.config import CropConfig
from efficientsam_pl.data.datasets.base import SampleDataset, catch_corrupt_sample
from efficientsam_pl.data.images.decode import (
    DecodedImage,
    decode_smaller,
    image_size_of,
    jpeg_scale,
)
from efficientsam_pl.data.images.orientation import Data
from efficientsam_pl.data.reader import ReadSample, SampleReader
from efficientsam_pl.data.sample_files import encoded_image
from efficientsam_pl.data.sampler import SampleRef
from efficientsam_pl.data.transforms import Crop, crop_of, crop_scale, resized_crop
from efficientsam_pl.structures import ImageBatch


class CropDataset(SampleDataset[PreparedImage]):
    """Pretraining: one random crop of an image (crop None: the centre, for held-out images)."""

    def __init__(
        self,
        reader: SampleReader,
        crop: CropConfig | None,
        side: int,
        seed: int,
        exact: bool = False,
    ) -> None:
        """Crop to squares of `side` pixels; `exact`: JPEGs are decoded at full size."""
        super().__init__(reader, seed)
        self._crop, self._side, self._exact = crop, side, exact

    def collate(self, samples: Sequence[PreparedImage]) -> ImageBatch:
        """Collate the samples that `__getitems__` returns."""
        return collate_images(samples, self._side)

    def _prepared(self, sample_ref: SampleRef, read: ReadSample | None) -> PreparedImage:
        if read is None:
            return PreparedImage("", 0, None)
        key = self._key(sample_ref, read)
        image, corrupt = catch_corrupt_sample(
            read, lambda: self._view(encoded_image(read.files), key)
        )
        return PreparedImage(read.sample.key, key, image, corrupt)

    def _view(self, data: Data, key: int) -> UInt8[Tensor, "3 s s"]:
        crop = crop_of(image_size_of(data), self._crop, key)
        return next(crop_squares(data, [crop], self._side, self._exact))


def crop_squares(
    data: Data, crops: Sequence[Crop], side: int, exact: bool
) -> Iterator[UInt8[Tensor, "3 s s"]]:
    """Resize crops of one image to squares of `side` pixels, decoding once for each scale.

    Args:
        data: The encoded image.
        crops: Rectangles in its pixels.
        side: Side of the squares, pixels.
        exact: A JPEG is decoded at full size; if not, smaller where a crop needs no more.

    Raises:
        CorruptSampleError: The image cannot be decoded.
    """
    decoded: dict[int, DecodedImage] = {}
    for crop in crops:
        scale = jpeg_scale(1.0 if exact else crop_scale(crop, side))
        if scale not in decoded:
            decoded[scale] = decode_smaller(data, float(scale))
        yield resized_crop(decoded[scale], crop, side)
