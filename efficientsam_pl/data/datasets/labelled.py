"""Labelled images: augmented crops for training, centre crops for scoring."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from efficientsam_pl.data.augment import RandAugment, erase
from efficientsam_pl.data.class_config import AugmentConfig, MixConfig
from efficientsam_pl.data.collate import stack_images
from efficientsam_pl.data.config import CropConfig
from efficientsam_pl.data.datasets.base import SampleDataset, catch_corrupt_sample
from efficientsam_pl.data.datasets.crops import crop_squares
from efficientsam_pl.data.images.decode import decode_image, image_size_of
from efficientsam_pl.data.images.orientation import Data
from efficientsam_pl.data.mixing import mixes
from efficientsam_pl.data.reader import ReadSample, SampleReader
from efficientsam_pl.data.sample_files import encoded_image
from efficientsam_pl.data.sampler import SampleRef
from efficientsam_pl.data.schema import CLASS_SUFFIX, IMAGE_SUFFIXES, CorruptSampleError
from efficientsam_pl.data.transforms import random_crop
from efficientsam_pl.records import CorruptSample
from efficientsam_pl.structures import ClassBatch

LABELLED_SUFFIXES = (*IMAGE_SUFFIXES, CLASS_SUFFIX)
_UNMIXED = MixConfig(mixup=0.0, cutmix=0.0)


@dataclass(frozen=True)
class PreparedLabelled:
    """An image with its class; None for padding and corrupt samples."""

    key: str
    sample_key: int
    image: UInt8[Tensor, "3 s s"] | None
    label: int = 0
    corrupt: CorruptSample | None = None


class TrainingView:
    """Random crop and flip, RandAugment, random erasing: what a key says."""

    def __init__(
        self, side: int, crop: CropConfig, augment: AugmentConfig, exact: bool = False
    ) -> None:
        """Draw squares of `side` pixels; `exact`: JPEGs are decoded at full size."""
        self.side, self._crop, self._exact = side, crop, exact
        self._erasing = augment.erasing
        policy = augment.rand_augment
        self._rand_augment = None if policy is None else RandAugment(policy, side)

    def __call__(self, data: Data, key: int) -> UInt8[Tensor, "3 s s"]:
        """Decode an image and augment it."""
        crop = random_crop(image_size_of(data), self._crop, key)
        image = next(crop_squares(data, [crop], self.side, self._exact))
        if self._rand_augment is not None:
            image = self._rand_augment(image, key)
        return erase(image, self._erasing, key)


class ScoringView:
    """The shorter side resized (Pillow's bicubic, as the reference), then the centre."""

    def __init__(self, side: int, resize_side: int) -> None:
        """Cut squares of `side` pixels from images whose shorter side is `resize_side`."""
        self.side, self._resize_side = side, resize_side

    def __call__(self, data: Data, key: int) -> UInt8[Tensor, "3 s s"]:
        """Decode an image and cut its centre; the key decides nothing."""
        return self.cut(decode_image(data))

    def cut(self, pixels: UInt8[np.ndarray, "h w 3"]) -> UInt8[Tensor, "3 s s"]:
        """Resize and cut a decoded image."""
        height, width = pixels.shape[:2]
        short = min(height, width)
        # torchvision's rounding of the longer side, and of the corner
        size = (int(self._resize_side * width / short), int(self._resize_side * height / short))
        resized = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
        left, top = (round((length - self.side) / 2.0) for length in size)
        square = resized.crop((left, top, left + self.side, top + self.side))
        return torch.from_numpy(np.array(square)).permute(2, 0, 1)


class LabelledDataset(SampleDataset[PreparedLabelled]):
    """Images with their class numbers, seen through a view and mixed in groups."""

    def __init__(
        self,
        reader: SampleReader,
        view: TrainingView | ScoringView,
        classes: int,
        seed: int,
        mix: MixConfig = _UNMIXED,
    ) -> None:
        super().__init__(reader, seed)
        self._view, self._classes, self._mix = view, classes, mix

    def collate(self, samples: Sequence[PreparedLabelled]) -> ClassBatch:
        """Collate the samples that `__getitems__` returns."""
        side = self._view.side
        black = torch.zeros(3, side, side, dtype=torch.uint8)
        valid = [sample.image is not None for sample in samples]
        slots = mixes([sample.sample_key for sample in samples], valid, self._mix, side)
        return ClassBatch(
            image=stack_images([black if s.image is None else s.image for s in samples]),
            label=torch.tensor([sample.label for sample in samples]),
            partner=torch.tensor([slot.partner for slot in slots]),
            own_share=torch.tensor([slot.mix.own_share for slot in slots]),
            mix_box=torch.tensor([slot.mix.box for slot in slots]),
            sample_key=torch.tensor([sample.sample_key for sample in samples]),
            valid=torch.tensor(valid),
            key=tuple(sample.key for sample in samples),
            corrupt=tuple(s.corrupt for s in samples if s.corrupt is not None),
        )

    def _prepared(self, sample_ref: SampleRef, read: ReadSample | None) -> PreparedLabelled:
        if read is None:
            return PreparedLabelled("", 0, None)
        key = self._key(sample_ref, read)
        content, corrupt = catch_corrupt_sample(read, lambda: self._content(read, key))
        if content is None:
            return PreparedLabelled(read.sample.key, key, None, corrupt=corrupt)
        image, label = content
        return PreparedLabelled(read.sample.key, key, image, label)

    def _content(self, read: ReadSample, key: int) -> tuple[UInt8[Tensor, "3 s s"], int]:
        label = class_number(read.files, self._classes)
        return self._view(encoded_image(read.files), key), label


def class_number(files: dict[str, memoryview], classes: int) -> int:
    """Parse the class among a sample's files.

    Raises:
        CorruptSampleError: There is none, it is no number, or none of the known classes.
    """
    if CLASS_SUFFIX not in files:
        raise CorruptSampleError("missing class", f"only {', '.join(sorted(files)) or 'nothing'}")
    text = bytes(files[CLASS_SUFFIX][:40]).decode(errors="replace").strip()
    if not text.isdecimal():
        raise CorruptSampleError("bad class", f"{text!r} is no class number")
    if int(text) >= classes:
        raise CorruptSampleError("unknown class", f"class {text}, and there are {classes}")
    return int(text)
