from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import roi_align

from efficientsam_pl.data.features.image_maps import ImageMaps
from efficientsam_pl.data.transforms import Crop

MAPS = ImageMaps(side=64, grid=4, exact=True)


@pytest.mark.parametrize(
    ("content_hw", "cells"),
    [((64, 64), (4, 4)), ((64, 32), (4, 2)), ((33, 64), (3, 4)), ((64, 1), (4, 1))],
)
def test_cells_that_hold_image_in_part_are_kept(
    content_hw: tuple[int, int], cells: tuple[int, int]
) -> None:
    assert MAPS.cells(content_hw) == cells
    features = torch.arange(16.0).reshape(1, 4, 4)
    kept = MAPS.kept(features, content_hw)
    assert kept.shape == (*cells, 1)
    assert torch.equal(kept[..., 0], features[0, : cells[0], : cells[1]])


def test_blocks_at_the_edge_are_the_mean_of_the_cells_with_image() -> None:
    """An image of 40 x 64 covers five rows of the 8 x 8 cells of 8 pixels: blocks of 2, 2 and 1."""
    features = torch.full((1, 8, 8), 1000.0)  # what the padding has must not get in
    features[0, :5] = torch.arange(5.0)[:, None] * 10 + torch.arange(8.0)
    kept = MAPS.kept(features, (40, 64))
    assert kept.shape == (3, 4, 1)
    expected = torch.tensor([5.0, 25.0, 40.0])[:, None] + torch.tensor([0.5, 2.5, 4.5, 6.5])
    torch.testing.assert_close(kept[..., 0], expected)


def test_image_lies_in_the_square_as_sam_lays_it(
    jpeg_of: Callable[[np.ndarray], bytes], noise: Callable[..., np.ndarray]
) -> None:
    image = noise(3, 90, 60)
    shown = MAPS.teacher_input(jpeg_of(image), "a")
    [(suffix, square)] = shown.squares.items()
    assert (suffix, shown.content_hw) == ("photo.safetensors", (64, 43))
    assert square.shape == (3, 64, 64)
    assert not square[:, :, 43:].any()
    resized = np.array(Image.fromarray(image).resize((43, 64), Image.Resampling.BILINEAR))
    difference = square[:, :, :43].permute(1, 2, 0).int() - torch.from_numpy(resized).int()
    assert float(difference.abs().float().mean()) < 2  # a JPEG lies between them


@pytest.mark.parametrize("image_hw", [(90, 60), (60, 90), (50, 50), (300, 211)])
@pytest.mark.parametrize("grid", [1, 5])
def test_features_of_a_crop_are_those_under_it(image_hw: tuple[int, int], grid: int) -> None:
    rows, cols = MAPS.cells(MAPS.resize(image_hw).content_hw)
    stored = torch.randn(rows, cols, 3, generator=torch.Generator().manual_seed(0))
    height, width = image_hw
    crop = Crop(height // 5, width // 3, height // 2, width // 2, flip=False)
    down, across = (
        c / s / 16 for c, s in zip(MAPS.resize(image_hw).content_hw, image_hw, strict=True)
    )
    box = [
        crop.left * across,
        crop.top * down,
        (crop.left + crop.width) * across,
        (crop.top + crop.height) * down,
    ]
    sampled = roi_align(
        stored.permute(2, 0, 1)[None].double(),
        torch.tensor([[0.0, *box]], dtype=torch.float64),
        grid,
        sampling_ratio=200,
        aligned=True,
    )
    ours = MAPS.of_crop(stored, crop, image_hw, grid)
    assert ours.shape == (grid * grid, 3)
    torch.testing.assert_close(ours, sampled[0].flatten(1).T.float(), atol=1e-4, rtol=0)
    mirrored = MAPS.of_crop(stored, Crop(*crop_box(crop), flip=True), image_hw, grid)
    unflattened = mirrored.unflatten(0, (grid, grid))
    torch.testing.assert_close(unflattened.flip(1).flatten(0, 1), ours)


def crop_box(crop: Crop) -> tuple[int, int, int, int]:
    return crop.top, crop.left, crop.height, crop.width


def test_brighter_half_of_a_image_has_the_brighter_features() -> None:
    """By hand: a map that grows by one a column; a crop's cells have their centres' values."""
    stored = torch.arange(4.0).expand(4, 4)[..., None] + 0.5  # the value at x cells is x
    crop = Crop(0, 100, 200, 200, flip=False)  # a quarter to three quarters of 400 x 400
    features = MAPS.of_crop(stored, crop, (400, 400), 2)
    assert features[:, 0].tolist() == pytest.approx([1.5, 2.5, 1.5, 2.5])
    flipped = MAPS.of_crop(stored, Crop(0, 100, 200, 200, flip=True), (400, 400), 2)
    assert flipped[:, 0].tolist() == pytest.approx([2.5, 1.5, 2.5, 1.5])
