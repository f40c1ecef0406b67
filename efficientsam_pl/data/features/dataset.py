"""Pretraining photos with their stored features: the crops that the teacher saw, or any crop."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float16, UInt8
from torch import Tensor

from efficientsam_pl.data.collate import PreparedImage, collate_images
from efficientsam_pl.data.config import CropConfig
from efficientsam_pl.data.datasets.base import SampleDataset, catch_corrupt_sample
from efficientsam_pl.data.datasets.crops import crop_squares
from efficientsam_pl.data.decode import image_size_of
from efficientsam_pl.data.features.codec import read_map
from efficientsam_pl.data.features.image_maps import ImageMaps
from efficientsam_pl.data.features.store import FeatureSet
from efficientsam_pl.data.features.views import Views
from efficientsam_pl.data.index import Sample
from efficientsam_pl.data.reader import ReadSample, SampleReader
from efficientsam_pl.data.sample_files import image_of
from efficientsam_pl.data.sampler import SampleRef
from efficientsam_pl.data.schema import WHOLE_ENDING, CorruptSampleError
from efficientsam_pl.data.transforms import crop_of
from efficientsam_pl.structures import ImageBatch


@dataclass(frozen=True)
class Student:
    """Who learns from the features: its square in pixels, its tokens a side, and their channels."""

    side: int
    grid: int
    channels: int


@dataclass(frozen=True)
class ViewFiles:
    """The companion of a photo: the features of the view that the slot's epoch uses."""

    sets: tuple[FeatureSet, ...]
    views: Views
    seed: int  # of the run

    def view(self, slot: SampleRef, sample: str) -> int:
        """The view's number."""
        return self.views.of_epoch(self.seed, slot.epoch, sample)

    def __call__(self, slot: SampleRef, sample: Sample) -> Sample | None:
        """See Companion."""
        suffix = self.views.suffix(self.view(slot, sample.key))
        return self.sets[slot.set].find(sample, suffix)


@dataclass(frozen=True)
class MapFiles:
    """The companion of a photo: the features of all of it."""

    sets: tuple[FeatureSet, ...]

    def __call__(self, slot: SampleRef, sample: Sample) -> Sample | None:
        """See Companion."""
        return self.sets[slot.set].find(sample, WHOLE_ENDING)


class _Content(NamedTuple):
    image: UInt8[Tensor, "3 s s"]
    features: Float16[Tensor, "n c"]


class _StoredFeatures(SampleDataset[PreparedImage]):
    """Crops with their features; `sample_key` is of the run and the epoch, as it is online."""

    def __init__(self, reader: SampleReader, student: Student, seed: int) -> None:
        super().__init__(reader, seed)
        self._student = student

    def collate(self, samples: Sequence[PreparedImage]) -> ImageBatch:
        """A batch of what `__getitems__` gives."""
        own = self._student
        return collate_images(samples, own.side, (own.grid**2, own.channels))

    def _prepared(self, slot: SampleRef, read: ReadSample | None) -> PreparedImage:
        if read is None:
            return PreparedImage("", 0, None)
        key = self._key(slot, read)
        content, damage = catch_corrupt_sample(read, lambda: self._content(slot, read, key))
        if content is None:
            return PreparedImage(read.sample.key, key, None, damage)
        return PreparedImage(read.sample.key, key, content.image, damage, content.features)

    @abstractmethod
    def _content(self, slot: SampleRef, read: ReadSample, key: int) -> _Content: ...


class StoredViewDataset(_StoredFeatures):
    """The crops that the teacher saw, one an epoch; the reader's companion is `files`."""

    def __init__(self, reader: SampleReader, student: Student, files: ViewFiles) -> None:
        super().__init__(reader, student, files.seed)
        self._files = files

    def _content(self, slot: SampleRef, read: ReadSample, key: int) -> _Content:
        views, sample, own = self._files.views, read.sample.key, self._student
        view, data = self._files.view(slot, sample), image_of(read.files)
        crop = views.crop_of(view, sample, image_size_of(data))
        image = next(crop_squares(data, [crop], views.side, views.exact))
        suffix = views.suffix(view)
        stored = read_map(_file(read, suffix), suffix, (own.grid**2, own.channels))
        return _Content(image, stored)


class StoredMapDataset(_StoredFeatures):
    """Crops as online (crop None: the centre), their features taken from the whole photo's."""

    def __init__(
        self,
        reader: SampleReader,
        student: Student,
        crop: CropConfig | None,
        maps: ImageMaps,
        seed: int,
    ) -> None:
        super().__init__(reader, student, seed)
        self._crop, self._maps = crop, maps

    def _content(self, slot: SampleRef, read: ReadSample, key: int) -> _Content:
        maps, own, data = self._maps, self._student, image_of(read.files)
        image_hw = image_size_of(data)
        crop = crop_of(image_hw, self._crop, key)
        image = next(crop_squares(data, [crop], own.side, maps.exact))
        shape = (*maps.cells(maps.resize(image_hw).content_hw), own.channels)
        stored = read_map(_file(read, WHOLE_ENDING), WHOLE_ENDING, shape)
        return _Content(image, maps.of_crop(stored, crop, image_hw, own.grid).half())


def _file(read: ReadSample, suffix: str) -> memoryview:
    if suffix not in read.files:
        raise CorruptSampleError("missing features", f"none were stored as {suffix}")
    return read.files[suffix]
