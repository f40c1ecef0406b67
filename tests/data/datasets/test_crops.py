"""Crops for pretraining: reproducible, different in every epoch, without records."""

import numpy as np
import torch

from efficientsam_pl.data.config import CropConfig
from efficientsam_pl.data.datasets.crops import CropDataset
from efficientsam_pl.data.reader import SampleReader
from efficientsam_pl.data.sampler import SampleRef
from efficientsam_pl.data.schema import IMAGE_SUFFIXES
from efficientsam_pl.data.shards import ShardSet


def cropped(index: ShardSet, seed: int) -> CropDataset:
    return CropDataset(SampleReader([index], IMAGE_SUFFIXES), CropConfig(), 32, seed)


def test_crops_of_pretraining_are_reproducible_and_differ_by_epoch(
    rings: tuple[ShardSet, list[list[np.ndarray]]],
) -> None:
    index, _ = rings
    dataset = cropped(index, 1)
    again = cropped(index, 1)
    first = [dataset[SampleRef(e, s)].image for e in range(2) for s in range(6)]
    second = [again[SampleRef(e, s)].image for e in range(2) for s in range(6)]
    for image, other in zip(first, second, strict=True):
        assert image is not None
        assert other is not None
        assert image.shape == (3, 32, 32)
        assert torch.equal(image, other)
    assert not any(
        torch.equal(a, b)
        for a, b in zip(first[:6], first[6:], strict=True)
        if a is not None and b is not None
    )


def test_pretraining_needs_images_only(corrupt: tuple[ShardSet, dict[str, str]]) -> None:
    index, kinds = corrupt
    dataset = cropped(index, 0)
    batch = dataset.collate([dataset[SampleRef(0, i)] for i in range(len(index))])
    images = {k: v for k, v in kinds.items() if v.endswith("photo")}
    assert {d.key: d.kind for d in batch.corrupt} == images
    assert batch.valid.tolist() == [key not in images for key in batch.key]
