"""Images with label maps: jittered crops for training, whole images in a square for validation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from efficientsam_pl.data.collate import stack_images
from efficientsam_pl.data.datasets.base import SampleDataset, catch_corrupt_sample
from efficientsam_pl.data.detection_transforms import shortest_edge
from efficientsam_pl.data.images.decode import decode_smaller, image_size_of, jpeg_scale
from efficientsam_pl.data.images.label_map import check_same_size, packed_label_map
from efficientsam_pl.data.images.orientation import Data
from efficientsam_pl.data.reader import ReadSample, SampleReader
from efficientsam_pl.data.sample_files import encoded_image
from efficientsam_pl.data.sampler import SampleRef
from efficientsam_pl.data.schema import IMAGE_SUFFIXES, LABEL_SUFFIX, CorruptSampleError
from efficientsam_pl.data.semantic_config import SemanticCropConfig
from efficientsam_pl.data.semantic_transforms import (
    PADDING,
    ResizedCrop,
    crop_image,
    crop_labels,
    draw_crop,
    jitter_colour,
    padded,
    padded_labels,
    resized_hw,
)
from efficientsam_pl.records import IGNORED, CorruptSample
from efficientsam_pl.structures import SemanticBatch

SEMANTIC_SUFFIXES = (*IMAGE_SUFFIXES, LABEL_SUFFIX)


@dataclass(frozen=True)
class SemanticView:
    """An image and its label map in a square."""

    image: UInt8[Tensor, "3 s s"]
    labels: UInt8[Tensor, "s s"]


@dataclass(frozen=True)
class PreparedSemantic:
    """A sample as it is collated; `view` is None for padding and corrupt samples."""

    key: str
    sample_key: int
    view: SemanticView | None
    corrupt: CorruptSample | None = None


class SemanticTrainingView:
    """Random size, crop, colours and flip: what a key says."""

    def __init__(self, side: int, config: SemanticCropConfig, exact: bool = False) -> None:
        """Draw squares of `side` pixels; `exact`: JPEGs are decoded at full size."""
        self.side, self._config, self._exact = side, config, exact

    def __call__(self, data: Data, labels: UInt8[np.ndarray, "h w"], key: int) -> SemanticView:
        """Decode an image and cut it with its label map."""
        image_hw = (labels.shape[0], labels.shape[1])
        to_hw = resized_hw(image_hw, self.side, self._config, key)
        crop = draw_crop(labels, to_hw, self.side, self._config, key)
        view = _cut(data, labels, crop, self.side, self._exact)
        content = view.image[:, : crop.height, : crop.width]
        coloured = jitter_colour(content.permute(1, 2, 0).numpy(), self._config, key)
        return SemanticView(padded(coloured, (self.side, self.side)), view.labels)


class SemanticScoringView:
    """The whole image, its longer side that of the square, at the top left."""

    def __init__(self, side: int, exact: bool = False) -> None:
        """Fill squares of `side` pixels; `exact`: JPEGs are decoded at full size."""
        self.side, self._exact = side, exact

    def __call__(self, data: Data, labels: UInt8[np.ndarray, "h w"], key: int) -> SemanticView:
        """Decode an image and resize it with its label map; the key decides nothing."""
        to_hw = shortest_edge((labels.shape[0], labels.shape[1]), self.side, self.side)
        return _cut(data, labels, ResizedCrop(to_hw, 0, 0, *to_hw), self.side, self._exact)


class SemanticDataset(SampleDataset[PreparedSemantic]):
    """Images with label maps, seen through a view."""

    def __init__(
        self,
        reader: SampleReader,
        view: SemanticTrainingView | SemanticScoringView,
        classes: int,
        seed: int,
    ) -> None:
        """Read SEMANTIC_SUFFIXES; a label map with a class from `classes` on is corrupt."""
        super().__init__(reader, seed)
        self._view, self._classes = view, classes

    def collate(self, samples: Sequence[PreparedSemantic]) -> SemanticBatch:
        """Collate the samples that `__getitems__` returns."""
        side = self._view.side
        empty = SemanticView(
            torch.full((3, side, side), PADDING, dtype=torch.uint8),
            torch.full((side, side), IGNORED, dtype=torch.uint8),
        )
        views = [empty if sample.view is None else sample.view for sample in samples]
        return SemanticBatch(
            image=stack_images([view.image for view in views]),
            labels=torch.stack([view.labels for view in views]),
            valid=torch.tensor([sample.view is not None for sample in samples]),
            sample_key=torch.tensor([sample.sample_key for sample in samples]),
            key=tuple(sample.key for sample in samples),
            corrupt=tuple(s.corrupt for s in samples if s.corrupt is not None),
            present=tuple(_present(view.labels) for view in views),
        )

    def _prepared(self, sample_ref: SampleRef, read: ReadSample | None) -> PreparedSemantic:
        if read is None:
            return PreparedSemantic("", 0, None)
        key = self._key(sample_ref, read)
        view, corrupt = catch_corrupt_sample(read, lambda: self._content(read, key))
        return PreparedSemantic(read.sample.key, key, view, corrupt)

    def _content(self, read: ReadSample, key: int) -> SemanticView:
        labels = label_map(read.files, self._classes)
        return self._view(encoded_image(read.files), labels, key)


def label_map(files: dict[str, memoryview], classes: int) -> UInt8[np.ndarray, "h w"]:
    """Decode the label map among a sample's files.

    Raises:
        CorruptSampleError: There is none, it cannot be read, holds a class beyond the known ones,
            or has another size than the image.
    """
    if LABEL_SUFFIX not in files:
        raise CorruptSampleError(
            "missing label map", f"only {', '.join(sorted(files)) or 'nothing'}"
        )
    labels = packed_label_map(files[LABEL_SUFFIX], classes)
    check_same_size(labels.shape, image_size_of(encoded_image(files)))
    return labels


def _cut(
    data: Data, labels: UInt8[np.ndarray, "h w"], crop: ResizedCrop, side: int, exact: bool
) -> SemanticView:
    scale = 1.0 if exact else min(labels.shape) / min(crop.resized_hw)
    pixels = decode_smaller(data, float(jpeg_scale(scale))).pixels
    return SemanticView(
        padded(crop_image(pixels, crop), (side, side)),
        padded_labels(crop_labels(labels, crop), (side, side)),
    )


def _present(labels: UInt8[Tensor, "s s"]) -> tuple[int, ...]:
    counts = torch.bincount(labels.flatten(), minlength=256)[:IGNORED]
    return tuple(counts.nonzero().flatten().tolist())
