"""Decoded pixels against Pillow's, and what is no image."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from efficientsam_pl.data.images.decode import decode_image, decode_smaller, image_size_of
from efficientsam_pl.data.schema import CorruptSampleError


def smooth(height: int, width: int) -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    resized = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.array(resized)


def saved(image: Image.Image, form: str = "JPEG", **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


def by_pillow(data: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_is_pillows_pixel_by_pixel(subsampling: int, progressive: bool) -> None:
    image = Image.fromarray(smooth(97, 131))
    data = saved(image, subsampling=subsampling, progressive=progressive)
    np.testing.assert_array_equal(decode_image(data), by_pillow(data))
    np.testing.assert_array_equal(decode_image(memoryview(data)), by_pillow(data))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_jpegs_become_rgb(mode: str) -> None:
    data = saved(Image.fromarray(smooth(40, 50)).convert(mode))
    difference = decode_image(data).astype(int) - by_pillow(data)
    assert np.abs(difference).max() <= (1 if mode == "CMYK" else 0)  # two roundings of one product
    assert decode_smaller(data, 4.0).image_hw == (40, 50)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L"])
def test_png_under_any_name_becomes_rgb(mode: str) -> None:
    data = saved(Image.fromarray(smooth(40, 50)).convert(mode), "PNG")
    assert image_size_of(data) == (40, 50)
    image = decode_smaller(data, 8.0)
    assert (image.scale, image.image_hw) == (1, (40, 50))
    np.testing.assert_array_equal(image.pixels, by_pillow(data))


@pytest.mark.parametrize(
    ("largest", "scale"), [(1.0, 1), (1.9, 1), (2.0, 2), (3.9, 2), (4.5, 4), (8.0, 8), (99.0, 8)]
)
def test_jpeg_is_decoded_as_small_as_is_allowed(largest: float, scale: int) -> None:
    image = smooth(203, 301)
    decoded = decode_smaller(saved(Image.fromarray(image), quality=98, subsampling=0), largest)
    assert decoded.scale == scale
    assert decoded.image_hw == (203, 301)
    assert decoded.pixels.shape == (-(-203 // scale), -(-301 // scale), 3)
    size = (decoded.pixels.shape[1], decoded.pixels.shape[0])
    box = (0, 0, size[0] * scale, size[1] * scale)
    padded = np.pad(image, ((0, 8), (0, 8), (0, 0)), mode="edge")
    expected = np.array(Image.fromarray(padded).resize(size, Image.Resampling.BOX, box=box))
    assert np.abs(decoded.pixels.astype(int) - expected).mean() < 2


@pytest.mark.parametrize("kept", [0, 1, 2, 20, 300, -200, -2])
def test_jpeg_that_breaks_off_is_a_bad_image(kept: int) -> None:
    data = saved(Image.fromarray(smooth(97, 131)))
    with pytest.raises(CorruptSampleError) as caught:
        decode_image(data[:kept])
    assert caught.value.kind == "bad photo"
    assert "0x" not in str(caught.value)  # one kind of corruption is reported in the same words


def test_jpeg_with_garbage_in_it_is_a_bad_image_not_grey_pixels() -> None:
    data = saved(Image.fromarray(smooth(300, 400)), quality=95)
    draw, refused = np.random.default_rng(0), 0
    for _ in range(40):
        broken = bytearray(data)
        at = int(draw.integers(700, len(data) - 300))
        broken[at : at + 200] = draw.bytes(200)
        try:
            decode_image(bytes(broken))
        except CorruptSampleError:
            refused += 1
    assert refused >= 36  # entropy-coded data may also decode to other pixels unnoticed
    with pytest.raises(CorruptSampleError, match="bad photo"):
        decode_image(data[: len(data) // 2] + b"\xff\xd9")  # cut, and ended as if it were whole


def test_image_of_absurd_size_is_not_decoded() -> None:
    data = bytearray(saved(Image.fromarray(smooth(16, 16))))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = b"\xff\x00\xff\x00"  # 65280 x 65280 pixels
    with pytest.raises(CorruptSampleError, match="65280 x 65280"):
        decode_image(bytes(data))


def test_real_images_are_pillows(shared: Path) -> None:
    images = sorted((shared / "data/imagenet_sample").glob("*/*.JPEG"))[::6]
    images += sorted((shared / "data/sa1b_images").glob("*.jpg"))[:2]
    for image in images:
        data = image.read_bytes()
        np.testing.assert_array_equal(decode_image(data), by_pillow(data))
