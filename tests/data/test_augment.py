"""RandAugment and random erasing: functions of the key, with timm's operations."""

import random

import numpy as np
import pytest
import torch
from jaxtyping import UInt8
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from torch import Tensor

from efficientsam_pl.data.augment import RandAugment, erase, seeded_globals

SIDE = 48


@pytest.fixture
def image() -> UInt8[Tensor, "3 s s"]:
    small = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8))
    pixels = np.array(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def test_the_policy_is_timms_with_generators_seeded_by_the_key(
    image: UInt8[Tensor, "3 s s"],
) -> None:
    policy = "rand-m9-mstd0.5-inc1"
    settings = {
        "translate_const": int(SIDE * 0.45),
        "img_mean": tuple(min(255, round(255 * m)) for m in (0.485, 0.456, 0.406)),
        "interpolation": Image.Resampling.BICUBIC,
    }
    theirs = rand_augment_transform(policy, settings)
    augment = RandAugment(policy, SIDE)
    changed = 0
    for key in range(20):
        with seeded_globals(key):
            expected = np.array(theirs(Image.fromarray(image.permute(1, 2, 0).numpy())))
        ours = augment(image, key)
        assert np.array_equal(ours.permute(1, 2, 0).numpy(), expected)
        assert torch.equal(ours, augment(image, key))
        changed += not torch.equal(ours, image)
    assert changed > 10


def test_posterizing_to_no_bits_is_black_with_any_pillow(image: UInt8[Tensor, "3 s s"]) -> None:
    """As Pillow did before it refused: values & ~255. The usual policy draws it now and then."""
    augment = RandAugment("rand-m10-n1-inc1", SIDE)  # one of 15 operations
    black = sum(not augment(image, key).any() for key in range(150))
    assert 2 <= black <= 22  # four standard deviations


def test_the_global_generators_are_left_as_they_were(image: UInt8[Tensor, "3 s s"]) -> None:
    augment = RandAugment("rand-m9-mstd0.5-inc1", SIDE)
    states = []
    for key in (None, 5):
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        if key is not None:
            augment(image, key)
        states.append((random.random(), np.random.rand()))  # noqa: NPY002
    assert states[0] == states[1]


def test_erasing_fills_a_rectangle_of_noise_as_often_as_asked(
    image: UInt8[Tensor, "3 s s"],
) -> None:
    shares = []
    for key in range(400):
        erased = erase(image, 0.25, key)
        changed = (erased != image).any(0)
        if not changed.any():
            continue
        rows, columns = (torch.where(changed.any(axis))[0] for axis in (1, 0))
        inside = changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert inside.float().mean() > 0.95, "one rectangle"
        shares.append(float(inside.numel()) / SIDE**2)
    assert len(shares) / 400 == pytest.approx(0.25, abs=0.06)
    assert min(shares) > 0.015
    assert max(shares) < 0.35


def test_noise_has_imagenets_mean() -> None:
    black = torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)
    erased = [erase(black, 1.0, key) for key in range(60)]
    noise = torch.cat([image[:, (image > 0).any(0)].float() for image in erased], dim=1)
    assert noise.mean(1).tolist() == pytest.approx([123.7, 116.3, 103.5], abs=3)
    assert noise.std(1).tolist() == pytest.approx([58, 56, 56], abs=4)


def test_nothing_is_erased_at_probability_zero(image: UInt8[Tensor, "3 s s"]) -> None:
    assert all(torch.equal(erase(image, 0.0, key), image) for key in range(50))
