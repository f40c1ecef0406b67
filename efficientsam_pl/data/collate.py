"""Collate samples into batches. Padding and corrupt samples keep their row, with `valid` False."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float16, UInt8
from torch import Tensor
from torch.utils.data import get_worker_info

from efficientsam_pl.records import CorruptSample
from efficientsam_pl.structures import ImageBatch, MaskBatch


@dataclass(frozen=True)
class PreparedImage:
    """A cropped image, and its stored features where they are read; None for a missing one."""

    key: str
    sample_key: int
    image: UInt8[Tensor, "3 s s"] | None
    corrupt: CorruptSample | None = None
    features: Float16[Tensor, "n c"] | None = None


@dataclass(frozen=True)
class PreparedMasks:
    """An image in the model's frame with its sampled masks; see MaskBatch for the units."""

    image: UInt8[Tensor, "3 s s"]
    content_hw: tuple[int, int]
    masks: Bool[Tensor, "q mh mw"]
    boxes_xyxy_px: Float[Tensor, "q 4"]
    clicks_px: Float[Tensor, "q p 2"]


@dataclass(frozen=True)
class PreparedMaskedImage:
    """A masked image; `content` is None for padding and corrupt samples."""

    key: str
    sample_key: int
    content: PreparedMasks | None
    corrupt: CorruptSample | None = None


def collate_images(
    samples: Sequence[PreparedImage], side: int, features: tuple[int, int] | None = None
) -> ImageBatch:
    """Collate images of `side` pixels; a missing one is black, its features zeros, and not valid.

    Args:
        samples: One for each row of the batch.
        side: Side of the square images, pixels.
        features: Tokens and channels; None: the batch has no features.
    """
    black = torch.zeros(3, side, side, dtype=torch.uint8)
    return ImageBatch(
        image=stack_images([black if s.image is None else s.image for s in samples]),
        sample_key=torch.tensor([s.sample_key for s in samples]),
        valid=torch.tensor([s.image is not None for s in samples]),
        key=tuple(s.key for s in samples),
        corrupt=tuple(s.corrupt for s in samples if s.corrupt is not None),
        features=None if features is None else _features(samples, features),
    )


def collate_masked(
    samples: Sequence[PreparedMaskedImage], empty: PreparedMasks, masks_per_image: int
) -> MaskBatch:
    """Collate images with `masks_per_image` mask rows each; `empty` replaces a missing image."""
    contents = [empty if s.content is None else s.content for s in samples]
    real = [torch.ones(len(c.masks), dtype=torch.bool) for c in contents]
    return MaskBatch(
        image=stack_images([c.image for c in contents]),
        content_hw=torch.tensor([c.content_hw for c in contents]),
        masks=_filled([c.masks for c in contents], masks_per_image),
        boxes_xyxy_px=_filled([c.boxes_xyxy_px for c in contents], masks_per_image),
        clicks_px=_filled([c.clicks_px for c in contents], masks_per_image),
        valid=_filled(real, masks_per_image),
        sample_key=torch.tensor([s.sample_key for s in samples]),
        key=tuple(s.key for s in samples),
        corrupt=tuple(s.corrupt for s in samples if s.corrupt is not None),
    )


def stack_images(images: Sequence[UInt8[Tensor, "3 h w"]]) -> UInt8[Tensor, "b 3 h w"]:
    """Stack images in channels-last memory, as decoders produce it and GPUs prefer it."""
    channels, height, width = images[0].shape
    batch = _zeros((len(images), height, width, channels), torch.uint8)
    for place, image in zip(batch, images, strict=True):
        place.copy_(image.permute(1, 2, 0))
    return batch.permute(0, 3, 1, 2)


def _features(samples: Sequence[PreparedImage], shape: tuple[int, int]) -> Float16[Tensor, "b n c"]:
    batch = _zeros((len(samples), *shape), torch.float16)
    for place, sample in zip(batch, samples, strict=True):
        if sample.features is not None:
            place.copy_(sample.features)
    return batch


def _filled(tensors: Sequence[Tensor], rows: int) -> Tensor:
    """Stack tensors, each padded with zeros to `rows` on its first axis."""
    first = tensors[0]
    batch = _zeros((len(tensors), rows, *first.shape[1:]), first.dtype)
    for place, tensor in zip(batch, tensors, strict=True):
        place[: len(tensor)] = tensor
    return batch


def _zeros(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Allocate zeros; in a data worker in shared memory, which spares a copy."""
    size = math.prod(shape) * dtype.itemsize
    if get_worker_info() is None or size == 0:
        return torch.zeros(shape, dtype=dtype)
    shared = torch.UntypedStorage._new_shared(size)  # as torch's own collate does
    return torch.empty(0, dtype=dtype).set_(shared).view(shape)
