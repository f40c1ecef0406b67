"""Labelled images: views, class numbers, corrupt samples, batches."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from efficientsam_pl.data.class_config import AugmentConfig, MixConfig, labelled_crop
from efficientsam_pl.data.datasets.labelled import (
    LABELLED_SUFFIXES,
    LabelledDataset,
    ScoringView,
    TrainingView,
)
from efficientsam_pl.data.datasets.labelled_images import LabelledImage, LabelledImages
from efficientsam_pl.data.reader import SampleReader
from efficientsam_pl.data.sampler import SampleRef
from efficientsam_pl.data.shards import ShardSet, open_shards
from efficientsam_pl.records import CorruptSample

SIDE = 32
Noise = Callable[..., np.ndarray]


@pytest.fixture
def labelled(
    tmp_path: Path, tar_of: Callable[..., Path], jpeg_of: Callable[..., bytes], noise: Noise
) -> ShardSet:
    """Eight images: four good ones of three classes, and one of each fault."""
    good = {f"a{n}": b"%d\n" % (n % 3) for n in range(4)}
    wrong = {"b0": b"3", "b1": b"cat", "b2": b"-1"}
    files: dict[str, bytes] = {}
    for number, (key, label) in enumerate({**good, **wrong}.items()):
        files |= {f"{key}.jpg": jpeg_of(noise(number)), f"{key}.cls": label}
    files["b3.jpg"] = jpeg_of(noise(9))
    tar_of(tmp_path / "labelled.tar", files)
    return open_shards(str(tmp_path / "labelled.tar"))


def dataset(shards: ShardSet, view: Any = None, **more: Any) -> LabelledDataset:
    reader = SampleReader([shards], LABELLED_SUFFIXES)
    return LabelledDataset(reader, view or ScoringView(SIDE, 36), 3, 0, **more)


def training_view(**changes: Any) -> TrainingView:
    return TrainingView(SIDE, labelled_crop(), AugmentConfig(**changes))


def batch(data: LabelledDataset, epoch: int = 0, numbers: range = range(8)) -> Any:
    return data.collate(data.__getitems__([SampleRef(epoch, number) for number in numbers]))


@pytest.mark.parametrize("hw", [(40, 60), (61, 40), (50, 50), (37, 97)])
def test_scoring_sees_what_the_reference_resizes_and_crops(
    hw: tuple[int, int], noise: Noise
) -> None:
    pixels = noise(1, *hw)
    reference = Compose([Resize(36, InterpolationMode.BICUBIC), CenterCrop(SIDE)])
    expected = np.array(reference(Image.fromarray(pixels)))
    assert np.array_equal(ScoringView(SIDE, 36).cut(pixels).permute(1, 2, 0).numpy(), expected)


def test_a_sample_without_a_class_that_is_known_is_corrupt_and_counted(labelled: ShardSet) -> None:
    seen = batch(dataset(labelled))
    assert seen.valid.tolist() == [True] * 4 + [False] * 4
    assert seen.label.tolist()[:4] == [0, 1, 2, 0]
    assert [(c.key, c.kind) for c in seen.corrupt] == [
        ("b0", "unknown class"), ("b1", "bad class"), ("b2", "bad class"), ("b3", "missing class"),
    ]  # fmt: skip
    assert seen.corrupt[0].detail == "class 3, and there are 3"


def test_held_out_images_are_mixed_with_none(labelled: ShardSet) -> None:
    seen = batch(dataset(labelled))
    assert seen.own_share.tolist() == [1] * 8
    assert not seen.mix_box.any()


def test_training_images_are_functions_of_epoch_and_sample(labelled: ShardSet) -> None:
    data = dataset(labelled, training_view(), mix=MixConfig(group=2))
    first, again, alone = batch(data), batch(data), batch(data, numbers=range(2, 4))
    assert torch.equal(first.image, again.image)
    assert torch.equal(alone.image, first.image[2:4])
    assert torch.equal(alone.own_share, first.own_share[2:4])
    assert torch.equal(alone.mix_box, first.mix_box[2:4])
    assert not torch.equal(batch(data, epoch=1).image, first.image)
    assert not torch.equal(batch(data, epoch=1).own_share, first.own_share)


def test_augmentation_changes_the_crop_alone_where_it_is_on(labelled: ShardSet) -> None:
    plain = batch(dataset(labelled, training_view(rand_augment=None, erasing=0.0)))
    erased = batch(dataset(labelled, training_view(rand_augment=None, erasing=1.0)))
    apart = (plain.image != erased.image).any(1)[:4].float().mean((1, 2))
    assert ((apart > 0.01) & (apart < 0.4)).all()


def test_padding_is_no_image(labelled: ShardSet) -> None:
    data = dataset(labelled)
    seen = data.collate(data.__getitems__([SampleRef(0, 0), SampleRef(0, None)]))
    assert seen.valid.tolist() == [True, False]
    assert seen.key == ("a0", "")


def test_images_to_score_have_the_datasets_pixels_and_faults(labelled: ShardSet) -> None:
    images, seen = LabelledImages(labelled, ScoringView(SIDE, 36), 3), batch(dataset(labelled))
    for number in range(4):
        read = images.read(number)
        assert isinstance(read, LabelledImage)
        assert torch.equal(read.image, seen.image[number])
        assert read.sha256 == images.fingerprint(number).sha256
    faults = [images.read(number) for number in range(4, 8)]
    assert faults == list(seen.corrupt)
    assert isinstance(faults[0], CorruptSample)
