"""Images in memory: Pillow, NumPy and torch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from efficientsam_pl.data.images.arrays import rgb_pixels
from efficientsam_pl.errors import UserError


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def test_an_rgb_array_is_returned_as_it_is(rgb: np.ndarray) -> None:
    assert rgb_pixels(rgb) is rgb or np.shares_memory(rgb_pixels(rgb), rgb)
    np.testing.assert_array_equal(rgb_pixels(rgb), rgb)


@pytest.mark.parametrize("strided", [np.s_[..., ::-1], np.s_[::-1], np.s_[:, ::-2], np.s_[::2]])
def test_any_strides_become_contiguous(rgb: np.ndarray, strided: tuple[slice, ...]) -> None:
    pixels = rgb_pixels(rgb[strided])
    assert pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, rgb[strided])
    torch.from_numpy(pixels)  # refuses negative strides


def test_fortran_order_keeps_the_pixels(rgb: np.ndarray) -> None:
    np.testing.assert_array_equal(rgb_pixels(np.asfortranarray(rgb)), rgb)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1)])
def test_grey_arrays_become_three_equal_channels(rgb: np.ndarray, shape: tuple[int, ...]) -> None:
    pixels = rgb_pixels(rgb[..., 0].reshape(shape))
    np.testing.assert_array_equal(pixels, np.stack([rgb[..., 0]] * 3, axis=2))


def test_the_alpha_of_an_array_is_dropped(rgb: np.ndarray) -> None:
    rgba = np.concatenate([rgb, np.zeros((5, 7, 1), np.uint8)], axis=2)
    np.testing.assert_array_equal(rgb_pixels(rgba), rgb)


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_sixteen_bits_are_reduced_to_the_high_byte(rgb: np.ndarray, order: str) -> None:
    deep = (rgb.astype(np.uint16) << 8 | 0xFF).astype(order)
    np.testing.assert_array_equal(rgb_pixels(deep), rgb)
    np.testing.assert_array_equal(rgb_pixels(deep[..., 0])[..., 0], rgb[..., 0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int64, bool, np.uint32])
def test_values_without_a_known_white_are_refused(rgb: np.ndarray, dtype: type) -> None:
    with pytest.raises(UserError, match=rf"image: values of {np.dtype(dtype)} have no known white"):
        rgb_pixels(rgb.astype(dtype))


@pytest.mark.parametrize("shape", [(3, 5, 7), (5,), (5, 7, 2), (1, 5, 7, 3), (5, 7, 5)])
def test_other_shapes_of_arrays_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"an array must be \[h, w\].*not \["):
        rgb_pixels(np.zeros(shape, np.uint8))


def test_an_array_without_pixels_is_refused() -> None:
    with pytest.raises(UserError, match="has no pixel"):
        rgb_pixels(np.zeros((0, 7, 3), np.uint8))


def test_tensors_hold_channels_where_the_length_is_three(rgb: np.ndarray) -> None:
    last = torch.from_numpy(rgb)
    np.testing.assert_array_equal(rgb_pixels(last), rgb)
    np.testing.assert_array_equal(rgb_pixels(last.permute(2, 0, 1)), rgb)
    np.testing.assert_array_equal(rgb_pixels(last.permute(2, 0, 1).contiguous()), rgb)


def test_a_tensor_whose_channels_may_be_first_or_last_is_refused() -> None:
    with pytest.raises(UserError, match=r"\[3, 5, 3\] may be \[3, h, w\] or \[h, w, 3\]"):
        rgb_pixels(torch.zeros(3, 5, 3, dtype=torch.uint8))


@pytest.mark.parametrize("shape", [(5, 7), (1, 5, 7), (1, 3, 5, 7), (4, 5, 7)])
def test_other_shapes_of_tensors_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"a tensor must be \[3, h, w\] or \[h, w, 3\], not \["):
        rgb_pixels(torch.zeros(shape, dtype=torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.int64])
def test_tensors_without_a_known_white_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(UserError, match="have no known white"):
        rgb_pixels(torch.zeros(3, 5, 7, dtype=dtype))


def test_a_sixteen_bit_tensor_is_reduced_to_the_high_byte(rgb: np.ndarray) -> None:
    deep = torch.from_numpy(rgb.astype(np.uint16) << 8 | 7)
    np.testing.assert_array_equal(rgb_pixels(deep), rgb)


def test_a_strided_tensor_is_read(rgb: np.ndarray) -> None:
    np.testing.assert_array_equal(rgb_pixels(torch.from_numpy(rgb)[:, ::2]), rgb[:, ::2])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_a_pillow_image_is_applied(
    rgb: np.ndarray, orientation: int, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(rgb).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        pixels = rgb_pixels(image)
        np.testing.assert_array_equal(pixels, np.array(ImageOps.exif_transpose(image)))
        np.testing.assert_array_equal(rgb_pixels(ImageOps.exif_transpose(image)), pixels)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"])
def test_pillow_modes_become_rgb(rgb: np.ndarray, mode: str) -> None:
    image = Image.fromarray(rgb).convert(mode)
    np.testing.assert_array_equal(rgb_pixels(image), np.array(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pillow_modes_without_a_known_rgb_are_refused(mode: str) -> None:
    with pytest.raises(UserError, match=f"mode {mode}"):
        rgb_pixels(Image.new(mode, (4, 3)))


@pytest.mark.parametrize("image", [None, "a.jpg", [[1, 2], [3, 4]]])
def test_another_type_is_named(image: object) -> None:
    with pytest.raises(UserError, match=f"image: {type(image).__name__} is no image"):
        rgb_pixels(image)
