"""Pretraining images with their stored features: the crops that the teacher saw, or any crop."""

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
from efficientsam_pl.data.features.codec import read_map
from efficientsam_pl.data.features.image_maps import ImageMaps
from efficientsam_pl.data.features.store import FeatureSet
from efficientsam_pl.data.features.views import Views
from efficientsam_pl.data.images.decode import image_size_of
from efficientsam_pl.data.index import Sample
from efficientsam_pl.data.reader import ReadSample, SampleReader
from efficientsam_pl.data.sample_files import encoded_image
from efficientsam_pl.data.sampler import SampleRef
from efficientsam_pl.data.schema import WHOLE_SUFFIX, CorruptSampleError
from efficientsam_pl.data.transforms import crop_of
from efficientsam_pl.structures import ImageBatch


@dataclass(frozen=True)
class Student:
    """The student's input side in pixels, its tokens a side, and the features' channels."""

    side: int
    grid: int
    channels: int


@dataclass(frozen=True)
class ViewLookup:
    """Finds the stored features of the view that a sample's epoch uses."""

    sets: tuple[FeatureSet, ...]
    views: Views
    seed: int  # of the run

    def view(self, sample_ref: SampleRef, sample: str) -> int:
        """Return the view's number."""
        return self.views.of_epoch(self.seed, sample_ref.epoch, sample)

    def __call__(self, sample_ref: SampleRef, sample: Sample) -> Sample | None:
        """See SidecarLookup."""
        suffix = self.views.suffix(self.view(sample_ref, sample.key))
        return self.sets[sample_ref.set].find(sample, suffix)


@dataclass(frozen=True)
class MapLookup:
    """Finds the stored features of a whole image."""

    sets: tuple[FeatureSet, ...]

    def __call__(self, sample_ref: SampleRef, sample: Sample) -> Sample | None:
        """See SidecarLookup."""
        return self.sets[sample_ref.set].find(sample, WHOLE_SUFFIX)


class _Content(NamedTuple):
    image: UInt8[Tensor, "3 s s"]
    features: Float16[Tensor, "n c"]


class _StoredFeatures(SampleDataset[PreparedImage]):
    """Crops with their features; `sample_key` depends on run and epoch, as without a store."""

    def __init__(self, reader: SampleReader, student: Student, seed: int) -> None:
        super().__init__(reader, seed)
        self._student = student

    def collate(self, samples: Sequence[PreparedImage]) -> ImageBatch:
        """Collate the samples that `__getitems__` returns."""
        student = self._student
        return collate_images(samples, student.side, (student.grid**2, student.channels))

    def _prepared(self, sample_ref: SampleRef, read: ReadSample | None) -> PreparedImage:
        if read is None:
            return PreparedImage("", 0, None)
        key = self._key(sample_ref, read)
        content, corrupt = catch_corrupt_sample(read, lambda: self._content(sample_ref, read, key))
        if content is None:
            return PreparedImage(read.sample.key, key, None, corrupt)
        return PreparedImage(read.sample.key, key, content.image, corrupt, content.features)

    @abstractmethod
    def _content(self, sample_ref: SampleRef, read: ReadSample, key: int) -> _Content: ...


class StoredViewDataset(_StoredFeatures):
    """The crops that the teacher saw, one an epoch; `files` is the reader's sidecar lookup."""

    def __init__(self, reader: SampleReader, student: Student, files: ViewLookup) -> None:
        super().__init__(reader, student, files.seed)
        self._files = files

    def _content(self, sample_ref: SampleRef, read: ReadSample, key: int) -> _Content:
        views, sample, student = self._files.views, read.sample.key, self._student
        view, data = self._files.view(sample_ref, sample), encoded_image(read.files)
        crop = views.crop_of(view, sample, image_size_of(data))
        image = next(crop_squares(data, [crop], views.side, views.exact))
        suffix = views.suffix(view)
        stored = read_map(_file(read, suffix), suffix, (student.grid**2, student.channels))
        return _Content(image, stored)


class StoredMapDataset(_StoredFeatures):
    """Crops as without a store (crop None: the centre), with features from the whole image's."""

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

    def _content(self, sample_ref: SampleRef, read: ReadSample, key: int) -> _Content:
        maps, student, data = self._maps, self._student, encoded_image(read.files)
        image_hw = image_size_of(data)
        crop = crop_of(image_hw, self._crop, key)
        image = next(crop_squares(data, [crop], student.side, maps.exact))
        shape = (*maps.cells(maps.resize(image_hw).content_hw), student.channels)
        stored = read_map(_file(read, WHOLE_SUFFIX), WHOLE_SUFFIX, shape)
        return _Content(image, maps.of_crop(stored, crop, image_hw, student.grid).half())


def _file(read: ReadSample, suffix: str) -> memoryview:
    if suffix not in read.files:
        raise CorruptSampleError("missing features", f"none were stored as {suffix}")
    return read.files[suffix]
