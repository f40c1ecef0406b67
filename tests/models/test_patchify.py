import math

import pytest
import torch
from torch import Tensor

from efficientsam_pl.models.patchify import patch_targets, patchify, unpatchify

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # ImageNet's, of 0..255


def images(count: int, side: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def test_patches_lie_where_the_image_has_them() -> None:
    index = torch.arange(2 * 3 * 4 * 6, dtype=torch.float32).reshape(2, 3, 4, 6)
    patches = patchify(index, 2)
    assert patches.shape == (2, 2, 3, 3, 2, 2)
    for row in range(2):
        for column in range(3):
            here = index[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            assert torch.equal(patches[:, row, column], here)


def test_a_side_of_no_whole_patches_is_refused() -> None:
    with pytest.raises(RuntimeError, match="16"):
        patchify(torch.zeros(1, 3, 32, 40), 16)


def test_target_is_maes_worked_out_pixel_by_pixel() -> None:
    """MAE's patchify (rows, columns, then channels) and its norm_pix_loss, in plain loops."""
    image, size = images(2, 8), 4
    actual = patch_targets(image, size)
    assert actual.shape == (2, 4, 48)
    for index in range(2):
        for token in range(4):
            top, left = size * (token // 2), size * (token % 2)
            values = [
                (float(image[index, c, top + y, left + x]) - MEAN[c]) / STD[c]
                for y in range(size)
                for x in range(size)
                for c in range(3)
            ]
            mean = sum(values) / 48
            variance = sum((value - mean) ** 2 for value in values) / 47
            expected = [(value - mean) / math.sqrt(variance + 1e-6) for value in values]
            torch.testing.assert_close(
                actual[index, token], torch.tensor(expected), rtol=0, atol=1e-5
            )


def test_target_of_a_flat_grey_patch_is_its_colours_alone() -> None:
    """Two numbers by hand: the patch's channels differ though its pixels do not."""
    image = torch.full((1, 3, 2, 2), 128, dtype=torch.uint8)
    r, g, b = ((128 - mean) / std for mean, std in zip(MEAN, STD, strict=True))
    mean = (r + g + b) / 3
    variance = 4 * ((r - mean) ** 2 + (g - mean) ** 2 + (b - mean) ** 2) / 11
    expected = torch.tensor([(c - mean) / (variance + 1e-6) ** 0.5 for c in (r, g, b)])
    torch.testing.assert_close(patch_targets(image, 2)[0, 0], expected.repeat(4), rtol=0, atol=1e-5)


def test_brightness_and_contrast_of_a_patch_do_not_matter() -> None:
    image = images(1, 16).float()
    squeezed = 0.25 * (image - torch.tensor(MEAN).view(3, 1, 1)) + torch.tensor(MEAN).view(3, 1, 1)
    torch.testing.assert_close(
        patch_targets(squeezed, 8), patch_targets(image, 8), rtol=1e-3, atol=1e-4
    )


def test_targets_painted_are_the_image_again() -> None:
    image = images(2, 12)
    assert torch.equal(unpatchify(patch_targets(image, 4), image, 4), image)


def test_patch_painted_one_lighter_by_its_spread() -> None:
    """A flat red channel beside flat others: half a standard deviation of all three, added."""
    image = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    image[:, 0] = 100
    r, g, b = ((v - mean) / std for v, mean, std in zip((100, 0, 0), MEAN, STD, strict=True))
    mean = (r + g + b) / 3
    spread = (4 * ((r - mean) ** 2 + (g - mean) ** 2 + (b - mean) ** 2) / 11) ** 0.5
    actual = unpatchify(patch_targets(image, 2) + 0.5, image, 2)
    expected = [round(v + 0.5 * spread * std) for v, std in zip((100, 0, 0), STD, strict=True)]
    assert actual[0, :, 0, 0].tolist() == expected


def test_what_is_painted_stays_within_bytes() -> None:
    image = images(1, 8)
    assert (unpatchify(torch.full((1, 4, 48), 99.0), image, 4) == 255).all()
    assert (unpatchify(torch.full((1, 4, 48), -99.0), image, 4) == 0).all()
