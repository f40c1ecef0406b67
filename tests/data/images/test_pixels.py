"""Modes and bit depths: one rule for bytes, files and arrays."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from efficientsam_pl.data.images.arrays import rgb_pixels
from efficientsam_pl.data.images.decode import decode_image, read_header
from efficientsam_pl.data.images.files import read_image
from efficientsam_pl.data.schema import CorruptSampleError
from efficientsam_pl.errors import UserError

RAMP = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8) + 255
HIGH = (RAMP >> 8).astype(np.uint8)


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


def every_way(data: bytes, folder: Path) -> list[np.ndarray]:
    """Read the same bytes by every door."""
    (folder / "image").write_bytes(data)
    with Image.open(io.BytesIO(data)) as image:
        return [decode_image(data), read_image(folder / "image"), rgb_pixels(image)]


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_sixteen_bit_grey_keeps_its_high_byte(form: str, tmp_path: Path) -> None:
    data = saved(Image.fromarray(RAMP), form)
    for pixels in every_way(data, tmp_path):
        np.testing.assert_array_equal(pixels, np.stack([HIGH] * 3, axis=2))


def test_big_endian_sixteen_bit_grey_keeps_its_high_byte(tmp_path: Path) -> None:
    image = Image.frombytes("I;16B", (8, 8), RAMP.astype(">u2").tobytes())
    np.testing.assert_array_equal(rgb_pixels(image)[..., 0], HIGH)
    for pixels in every_way(saved(image, "TIFF"), tmp_path):
        np.testing.assert_array_equal(pixels[..., 2], HIGH)


def test_sixteen_bit_grey_whose_white_is_zero_is_inverted(tmp_path: Path) -> None:
    data = saved(Image.fromarray(RAMP), "TIFF", tiffinfo={262: 0})
    for pixels in every_way(data, tmp_path):
        np.testing.assert_array_equal(pixels[..., 0], 255 - HIGH)


def png16(samples: np.ndarray, colour: int) -> bytes:
    """A PNG of 16 bits per channel, which Pillow cannot write; colour 2: RGB, 4: LA, 6: RGBA."""
    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    head = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_sixteen_bit_colour_keeps_its_high_bytes(
    colour: int, channels: int, tmp_path: Path
) -> None:
    samples = np.random.default_rng(0).integers(0, 65536, (5, 7, channels)).astype(np.uint16)
    expected = (samples[..., :3] if channels > 2 else samples[..., [0, 0, 0]]) >> 8
    for pixels in every_way(png16(samples, colour), tmp_path):
        np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize(
    ("values", "named"), [(np.float32, "floats"), (np.int32, "32-bit integers")]
)
def test_values_without_a_known_white_are_refused_everywhere(
    values: type, named: str, tmp_path: Path
) -> None:
    data = saved(Image.fromarray(HIGH.astype(values)), "TIFF")
    with pytest.raises(CorruptSampleError, match=f"bad photo: its pixels are {named}"):
        decode_image(data)
    (tmp_path / "depth.tif").write_bytes(data)
    with pytest.raises(UserError, match=rf"depth\.tif.*{named}.*no known white") as caught:
        read_image(tmp_path / "depth.tif")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "GIF", "BMP"])
def test_one_bit_is_black_and_white(form: str, tmp_path: Path) -> None:
    bits = np.random.default_rng(0).integers(0, 2, (9, 13)).astype(bool)
    for pixels in every_way(saved(Image.fromarray(bits), form), tmp_path):
        np.testing.assert_array_equal(pixels, np.stack([bits * np.uint8(255)] * 3, axis=2))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_dropped(mode: str, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    samples = draw.integers(0, 256, (6, 5, 4 if mode == "RGBA" else 2), dtype=np.uint8)
    samples[0, :, -1] = 0  # transparent
    expected = samples[..., :3] if mode == "RGBA" else samples[..., [0, 0, 0]]
    for pixels in every_way(saved(Image.fromarray(samples), "PNG"), tmp_path):
        np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize(
    ("form", "transparency"),
    [("PNG", None), ("PNG", 1), ("PNG", bytes([0, 128, 255, 7])), ("GIF", None), ("GIF", 1)],
)
def test_a_palette_is_looked_up_and_its_transparency_dropped(
    form: str, transparency: object, tmp_path: Path
) -> None:
    colours = np.array([[250, 3, 9], [8, 200, 70], [1, 2, 240], [90, 91, 92]], dtype=np.uint8)
    places = np.random.default_rng(0).integers(0, 4, (6, 7)).astype(np.uint8)
    image = Image.fromarray(places)
    image.putpalette(colours.tobytes())
    options = {} if transparency is None else {"transparency": transparency}
    for pixels in every_way(saved(image, form, **options), tmp_path):
        np.testing.assert_array_equal(pixels, colours[places])


@pytest.mark.parametrize("adobe", [True, False])
def test_a_cmyk_jpeg_is_read_as_pillow_reads_it(adobe: bool, tmp_path: Path) -> None:
    coarse = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((48, 32), Image.Resampling.BICUBIC)
    data = saved(image.convert("CMYK"), "JPEG", quality=95)
    if not adobe:
        start = data.index(b"\xff\xee")
        data = data[:start] + data[start + 2 + int.from_bytes(data[start + 2 : start + 4]) :]
    with Image.open(io.BytesIO(data)) as opened:
        expected = np.array(opened.convert("RGB")).astype(int)
    for pixels in every_way(data, tmp_path):
        assert np.abs(pixels - expected).max() <= 1  # two roundings of one product


@pytest.mark.parametrize("form", ["GIF", "TIFF", "WEBP", "PNG"])
def test_the_first_of_several_frames_is_read(form: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (6, 4), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    more = {"lossless": True} if form == "WEBP" else {}
    data = saved(frames[0], form, save_all=True, append_images=frames[1:], **more)
    assert read_header(data).stored_hw == (4, 6)
    for pixels in every_way(data, tmp_path):
        assert (pixels == [255, 0, 0]).all()
