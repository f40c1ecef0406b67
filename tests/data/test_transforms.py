import math

import numpy as np
import pytest
import torch
from torch import Tensor

from efficientsam_pl.data.config import CropConfig
from efficientsam_pl.data.images.decode import DecodedImage
from efficientsam_pl.data.transforms import (
    Crop,
    centre_crop,
    crop_scale,
    frame,
    mirror_boxes,
    mirror_points,
    random_crop,
    resized_crop,
)
from efficientsam_pl.geometry import Resize, ResizeRule
from efficientsam_pl.keyed_random import sample_key
from efficientsam_pl.mask_coverage import half_covered
from efficientsam_pl.rle import encode, run_lengths


def keys(count: int) -> list[int]:
    return [sample_key(0, 0, f"photo-{i}") for i in range(count)]


def test_crop_is_a_function_of_the_key() -> None:
    crops = [random_crop((90, 120), CropConfig(), key) for key in keys(50)]
    assert crops == [random_crop((90, 120), CropConfig(), key) for key in keys(50)]
    assert len(set(crops)) > 45


def test_crops_lie_inside_and_keep_to_area_and_aspect() -> None:
    config = CropConfig()
    for key in keys(300):
        crop = random_crop((300, 400), config, key)
        assert 0 <= crop.top <= 300 - crop.height
        assert 0 <= crop.left <= 400 - crop.width
        area, aspect = crop.height * crop.width / 120_000, crop.width / crop.height
        assert config.min_area - 0.01 <= area <= config.max_area
        assert config.min_aspect - 0.02 <= aspect <= config.max_aspect + 0.02


def test_crops_reach_all_edges_and_half_are_mirrored() -> None:
    crops = [random_crop((60, 80), CropConfig(), key) for key in keys(600)]
    assert min(c.top for c in crops) == 0 == min(c.left for c in crops)
    assert max(c.top + c.height for c in crops) == 60
    assert max(c.left + c.width for c in crops) == 80
    assert sum(c.flip for c in crops) == pytest.approx(300, abs=4 * math.sqrt(150))


def test_mean_area_is_that_of_a_uniform_draw() -> None:
    config = CropConfig(min_area=0.2, max_area=0.6, min_aspect=0.9, max_aspect=1.1)
    crops = [random_crop((500, 500), config, key) for key in keys(500)]
    areas = [c.height * c.width / 250_000 for c in crops]
    assert np.mean(areas) == pytest.approx(0.4, abs=4 * 0.4 / math.sqrt(12 * 500))


@pytest.mark.parametrize(
    ("hw", "expected"),
    [
        # no crop of 20 % fits a strip: the whole height, as wide as 4 / 3 of it, centred
        ((10, 1000), Crop(0, 493, 10, 13, False)),
        ((1000, 10), Crop(493, 0, 13, 10, False)),
    ],
)
def test_image_too_narrow_for_any_crop_gets_the_largest_centre_one(
    hw: tuple[int, int], expected: Crop
) -> None:
    assert random_crop(hw, CropConfig(flip=0.0), 7) == expected


def test_tiny_images_still_give_a_crop() -> None:
    for hw in [(1, 1), (1, 2), (2, 1), (3, 500), (1, 500)]:
        for key in keys(20):
            crop = random_crop(hw, CropConfig(), key)
            assert crop.height >= 1
            assert crop.width >= 1
            assert crop.top + crop.height <= hw[0]
            assert crop.left + crop.width <= hw[1]


def test_centre_crop_is_the_middle_square() -> None:
    assert centre_crop((40, 61)) == Crop(0, 10, 40, 40, False)
    assert centre_crop((61, 40)) == Crop(10, 0, 40, 40, False)


def test_crop_of_the_models_size_is_the_pixels_themselves() -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    photo = DecodedImage(image, (50, 70))
    there = resized_crop(photo, Crop(8, 20, 32, 32, False), 32)
    np.testing.assert_array_equal(there.permute(1, 2, 0).numpy(), image[8:40, 20:52])
    mirrored = resized_crop(photo, Crop(8, 20, 32, 32, True), 32)
    np.testing.assert_array_equal(mirrored.permute(1, 2, 0).numpy(), image[8:40, 20:52][:, ::-1])


def test_flip_moves_points_and_boxes_with_the_pixels() -> None:
    width = 9
    mask = np.zeros((5, width), dtype=bool)
    mask[1:4, 2:5] = True
    flipped = mask[:, ::-1]
    ys, xs = np.nonzero(mask)
    points = torch.from_numpy(np.stack([xs, ys], 1)).float()
    for x, y in mirror_points(points, width).int().tolist():
        assert flipped[y, x]
    box = mirror_boxes(torch.tensor([[2.0, 1.0, 4.0, 3.0]]), width)
    ys, xs = np.nonzero(flipped)
    assert box.tolist() == [[xs.min(), ys.min(), xs.max(), ys.max()]]


def test_frame_pads_right_and_below_with_black() -> None:
    image = np.full((30, 60, 3), 200, dtype=np.uint8)
    framed = frame(image, Resize.fit((30, 60), 64, "pad"), mirrored=False)
    assert framed.shape == (3, 64, 64)
    assert bool((framed[:, :32] == 200).all())
    assert bool((framed[:, 32:] == 0).all())


def reduced(masks: np.ndarray, resize: Resize, mirrored: bool = False) -> Tensor:
    runs = run_lengths([encode(mask) for mask in masks]) if len(masks) else []
    return torch.from_numpy(half_covered(runs, resize.mask_grid(resize.side // 4, mirrored)))


def random_blobs(count: int, hw: tuple[int, int]) -> np.ndarray:
    draw = np.random.default_rng(3)
    masks = np.zeros((count, *hw), dtype=bool)
    for mask in masks:
        top, left = draw.integers(0, hw[0] - 5), draw.integers(0, hw[1] - 5)
        mask[top : top + draw.integers(2, 30), left : left + draw.integers(2, 30)] = True
    return masks


def test_padded_masks_of_the_models_size_are_cells_half_covered() -> None:
    masks = random_blobs(12, (32, 64))  # 64 wide in a model of 64: nothing is resized
    small = reduced(masks, Resize.fit((32, 64), 64, "pad"))
    for mask, cells in zip(masks, small, strict=True):
        coverage = np.zeros((16, 16))
        for row in range(8):
            for column in range(16):
                cell = mask[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
                coverage[row, column] = cell.mean()
        if coverage.max() >= 0.5:
            np.testing.assert_array_equal(cells.numpy(), coverage >= 0.5)
        assert not cells[8:].any()  # padding


@pytest.mark.parametrize("rule", ["squash", "pad"])
def test_masks_follow_their_image_when_it_is_flipped(rule: ResizeRule) -> None:
    masks, resize = random_blobs(12, (37, 53)), Resize.fit((37, 53), 64, rule)
    assert torch.equal(
        reduced(masks, resize, mirrored=True), reduced(masks[:, :, ::-1].copy(), resize)
    )


@pytest.mark.parametrize("rule", ["squash", "pad"])
@pytest.mark.parametrize("hw", [(40, 60), (150, 90), (64, 64), (700, 1000)])
def test_framed_image_is_the_predictors_within_a_level(
    rule: ResizeRule, hw: tuple[int, int]
) -> None:
    draw = np.random.default_rng(0)
    image = draw.integers(0, 256, (*hw, 3), dtype=np.uint8)
    resize = Resize.fit(hw, 64, rule)
    height, width = resize.content_hw
    expected = resize.image_forward(image)
    framed = frame(image, resize, mirrored=False)[:, :height, :width].float()
    assert float((framed - expected).abs().max()) <= 1
    flipped = frame(image, resize, mirrored=True)[:, :height, :width].float()
    assert torch.equal(flipped.flip(-1), framed)


def test_cut_of_a_smaller_decoded_image_is_where_it_was() -> None:
    ramp = np.linspace(0, 255, 256).astype(np.uint8)
    image = np.stack([np.tile(ramp, (128, 1))] * 3, axis=-1)
    crop = Crop(32, 64, 64, 128, False)
    whole = resized_crop(DecodedImage(image, (128, 256)), crop, 32).float()
    half = image.reshape(64, 2, 128, 2, 3).mean(axis=(1, 3)).astype(np.uint8)
    small = resized_crop(DecodedImage(half, (128, 256), 2), crop, 32).float()
    assert float((whole - small).abs().max()) <= 2
    assert crop_scale(crop, 32) == 2


@pytest.mark.parametrize("rule", ["squash", "pad"])
@pytest.mark.parametrize("at", [(0, 0), (39, 59), (17, 23), (0, 59)])
def test_one_pixel_mask_survives_at_its_place(rule: str, at: tuple[int, int]) -> None:
    mask = np.zeros((1, 40, 60), dtype=bool)
    mask[0][at] = True
    resize = Resize.fit((40, 60), 32, rule)  # type: ignore[arg-type]
    [small] = reduced(mask, resize)
    assert 1 <= int(small.sum()) <= 4
    [[x, y]] = resize.points_forward(torch.tensor([[at[1] + 0.5, at[0] + 0.5]])).tolist()
    rows, columns = np.nonzero(small.numpy())
    assert abs(rows + 0.5 - y / 4).max() <= 1
    assert abs(columns + 0.5 - x / 4).max() <= 1


def test_empty_mask_stays_empty_and_none_stays_none() -> None:
    resize = Resize.fit((40, 60), 32, "squash")
    assert not reduced(np.zeros((2, 40, 60), dtype=bool), resize).any()
    assert reduced(np.zeros((0, 40, 60), dtype=bool), resize).shape == (0, 8, 8)


def test_full_mask_stays_full_but_for_the_padding() -> None:
    full = np.ones((1, 40, 60), dtype=bool)
    assert bool(reduced(full, Resize.fit((40, 60), 32, "squash")).all())
    padded = reduced(full, Resize.fit((40, 60), 48, "pad"))[0]  # content 32 x 48
    assert bool(padded[:8].all())
    assert not padded[8:].any()
