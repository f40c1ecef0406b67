import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image

from efficientsam_pl.geometry import Resize, ResizeRule

both_rules = pytest.mark.parametrize("rule", ["squash", "pad"])


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("image_hw", "content_hw"),
    [
        ((480, 640), (768, 1024)),
        ((640, 480), (1024, 768)),
        ((427, 640), (683, 1024)),  # 427 * 1.6 = 683.2
        ((1500, 2250), (683, 1024)),  # 682.67
        ((1024, 1024), (1024, 1024)),
        ((1, 4000), (1, 1024)),  # a quarter of a pixel, and yet there
    ],
)
def test_pad_scales_the_longest_side_to_the_square(
    image_hw: tuple[int, int], content_hw: tuple[int, int]
) -> None:
    assert Resize.fit(image_hw, 1024, "pad").content_hw == content_hw


def test_squash_fills_the_square() -> None:
    resize = Resize.fit((480, 640), 1024, "squash")
    assert resize.content_hw == (1024, 1024)
    assert resize.scale_xy() == (1024 / 640, 1024 / 480)


def test_points_and_boxes_by_hand() -> None:
    squash, pad = (Resize.fit((50, 100), 200, rule) for rule in ("squash", "pad"))
    points, boxes = torch.tensor([[10.0, 10.0]]), torch.tensor([[10.0, 5.0, 99.0, 49.0]])
    assert squash.points_forward(points).tolist() == [[20, 40]]
    assert squash.boxes_forward(boxes).tolist() == [[20, 20, 198, 196]]
    assert pad.points_forward(points).tolist() == [[20, 20]]
    assert pad.boxes_forward(boxes).tolist() == [[20, 10, 198, 98]]


@both_rules
@pytest.mark.parametrize("image_hw", [(480, 640), (427, 640), (333, 37)])
def test_points_and_boxes_come_back(image_hw: tuple[int, int], rule: ResizeRule) -> None:
    resize = Resize.fit(image_hw, 1024, rule)
    generator = torch.Generator().manual_seed(0)
    height, width = image_hw
    points = torch.rand(2, 5, 2, generator=generator) * torch.tensor([width, height])
    boxes = torch.rand(2, 5, 4, generator=generator) * torch.tensor([width, height] * 2)
    exactly = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(resize.points_back(resize.points_forward(points)), points, **exactly)
    torch.testing.assert_close(resize.boxes_back(resize.boxes_forward(boxes)), boxes, **exactly)


def test_padded_image_is_pillows() -> None:
    image = noise(60, 90)
    actual = Resize.fit((60, 90), 64, "pad").image_forward(image)
    expected = np.array(Image.fromarray(image).resize((64, 43), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(actual.permute(1, 2, 0).numpy(), expected)


def test_squashed_image_is_torchs() -> None:
    image = noise(60, 90)
    actual = Resize.fit((60, 90), 64, "squash").image_forward(image)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    expected = F.interpolate(pixels, (64, 64), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@both_rules
def test_image_of_the_models_size_is_left_alone(rule: ResizeRule) -> None:
    image = noise(64, 64)
    actual = Resize.fit((64, 64), 64, rule).image_forward(image)
    np.testing.assert_array_equal(actual.permute(1, 2, 0).numpy(), image)


@both_rules
@pytest.mark.parametrize("image_hw", [(48, 64), (97, 31)])
def test_masks_back_are_as_large_as_the_image(image_hw: tuple[int, int], rule: ResizeRule) -> None:
    masks = Resize.fit(image_hw, 64, rule).masks_back(torch.zeros(2, 3, 16, 16))
    assert masks.shape == (2, 3, *image_hw)


def test_masks_at_the_images_scale_come_back_unchanged_without_the_padding() -> None:
    low_res = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    whole = Resize.fit((32, 32), 32, "squash").masks_back(low_res)
    torch.testing.assert_close(whole, low_res, rtol=0, atol=0)
    cut = Resize.fit((20, 32), 32, "pad").masks_back(low_res)
    torch.testing.assert_close(cut, low_res[..., :20, :], rtol=0, atol=0)


def test_masks_back_are_resized_as_the_releases_do() -> None:
    low_res = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    squash = Resize.fit((30, 50), 64, "squash").masks_back(low_res)
    # EfficientSAM's predict_masks
    expected = F.interpolate(low_res, (30, 50), mode="bicubic", align_corners=False)
    torch.testing.assert_close(squash, expected, rtol=0, atol=0)
    pad = Resize.fit((30, 50), 64, "pad").masks_back(low_res)
    # SAM's postprocess_masks; 30 * 64 / 50 = 38.4
    square = F.interpolate(low_res, (64, 64), mode="bilinear", align_corners=False)
    expected = F.interpolate(square[..., :38, :64], (30, 50), mode="bilinear", align_corners=False)
    torch.testing.assert_close(pad, expected, rtol=0, atol=0)


@both_rules
@pytest.mark.parametrize("image_hw", [(48, 80), (80, 48)])
def test_a_rectangle_drawn_in_the_model_comes_back_where_its_box_does(
    image_hw: tuple[int, int], rule: ResizeRule
) -> None:
    resize = Resize.fit(image_hw, 80, rule)
    box = torch.tensor([[8.0, 8.0, 24.0, 32.0]])  # between pixels: edges, not centres
    x0, y0, x1, y1 = (resize.boxes_forward(box) / 4).round().int()[0].tolist()
    low_res = torch.full((1, 1, 20, 20), -10.0)
    low_res[..., y0:y1, x0:x1] = 10.0
    mask = resize.masks_back(low_res)[0, 0] > 0
    rows, columns = torch.nonzero(mask, as_tuple=True)
    actual = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    # A mask pixel is at most 4 image pixels wide, half of that may be rounded away
    assert (torch.stack(actual) - box[0]).abs().max() <= 2


@both_rules
@pytest.mark.parametrize("image_hw", [(60, 90), (33, 7), (200, 150)])
def test_masks_back_is_a_matrix_along_each_axis(
    image_hw: tuple[int, int], rule: ResizeRule
) -> None:
    resize = Resize.fit(image_hw, 64, rule)
    low_res = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    down, across = resize.mask_axes(16)
    torch.testing.assert_close(down @ low_res @ across.T, resize.masks_back(low_res))
