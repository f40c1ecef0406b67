"""The EXIF orientation: read without decoding, applied as Pillow applies it, and removed."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageOps

from efficientsam_pl.data.images.arrays import rgb_pixels
from efficientsam_pl.data.images.decode import (
    decode_image,
    decode_smaller,
    image_size_of,
    read_header,
)
from efficientsam_pl.data.images.orientation import (
    inverse,
    jpeg_orientation,
    png_orientation,
    turn_upright,
    without_orientation,
)

Tagged = Callable[..., bytes]
ORIENTATIONS = range(1, 9)
FORMATS = ("JPEG", "PNG", "TIFF", "WEBP")
HW = (24, 40)


def upright_image(hw: tuple[int, int] = HW) -> np.ndarray:
    """An image without any symmetry."""
    rows, columns = np.mgrid[: hw[0], : hw[1]]
    return np.stack([rows * 6, columns * 4, (rows + 2 * columns) % 200], axis=2).astype(np.uint8)


def by_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))


def exif_of(order: str, kind: int, value: int, count: int = 1) -> bytes:
    """An EXIF block with another entry before the orientation."""
    entries = struct.pack(order + "HHI4s", 0x0100, 3, 1, b"\0\1\1\0")
    packed = {1: "B3x", 3: "H2x", 4: "I"}.get(kind, "H2x")
    entries += struct.pack(order + "HHI" + packed, 0x0112, kind, count, value)
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8)
    return b"Exif\0\0" + head + struct.pack(order + "H", 2) + entries + b"\0\0\0\0"


def segment(marker: int, payload: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload


def with_segments(jpeg: bytes, *segments: bytes) -> bytes:
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def plain_jpeg() -> bytes:
    data = io.BytesIO()
    Image.fromarray(upright_image()).save(data, "JPEG", quality=95)
    return data.getvalue()


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_orientation_is_applied_as_pillow_applies_it(
    tagged: Tagged, form: str, orientation: int
) -> None:
    data = tagged(upright_image(), orientation, form)
    header = read_header(data)
    assert header.orientation == orientation
    assert header.stored_hw == (HW if orientation < 5 else HW[::-1])
    assert image_size_of(data) == HW
    np.testing.assert_array_equal(decode_image(data), by_pillow(data))
    close = np.abs(decode_image(data).astype(int) - upright_image())
    assert close.max() <= (8 if form == "JPEG" else 0)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_stored_pixels_are_read_where_the_orientation_is_ignored(
    tagged: Tagged, form: str, orientation: int
) -> None:
    data = tagged(upright_image(), orientation, form)
    stored = decode_smaller(data, 1.0, orientation=1)
    assert stored.image_hw == read_header(data).stored_hw == stored.pixels.shape[:2]
    np.testing.assert_array_equal(turn_upright(stored.pixels, orientation), by_pillow(data))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_an_inverse_undoes_its_orientation(orientation: int) -> None:
    turned = turn_upright(upright_image(), orientation)
    assert turned.flags.c_contiguous
    np.testing.assert_array_equal(turn_upright(turned, inverse(orientation)), upright_image())


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_an_image_that_is_decoded_smaller_is_turned_too(tagged: Tagged, orientation: int) -> None:
    decoded = decode_smaller(tagged(upright_image(), orientation), 8.0)
    assert (decoded.scale, decoded.image_hw) == (8, HW)
    means = upright_image().reshape(3, 8, 5, 8, 3).mean((1, 3))
    assert np.abs(decoded.pixels - means).max() < 6


@pytest.mark.parametrize(
    ("hw", "scale"), [((24, 40), 8), ((28, 40), 4), ((30, 40), 2), ((31, 40), 1)]
)
def test_no_cut_block_moves_to_another_side(
    tagged: Tagged, hw: tuple[int, int], scale: int
) -> None:
    image = upright_image(hw)
    assert decode_smaller(tagged(image, 3), 8.0).scale == scale
    assert decode_smaller(tagged(image, 1), 8.0).scale == 8


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [1, 3, 4])
def test_both_byte_orders_and_all_integer_types_are_read(order: str, kind: int) -> None:
    data = with_segments(plain_jpeg(), segment(0xE1, exif_of(order, kind, 6)))
    assert jpeg_orientation(data) == 6
    assert image_size_of(data) == HW[::-1]


@pytest.mark.parametrize(
    "exif",
    [
        exif_of("<", 3, 0),
        exif_of("<", 3, 9),
        exif_of("<", 2, 6),  # text
        exif_of("<", 3, 6, count=2),
        exif_of("<", 3, 6)[:-14],
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0XX*\0" + exif_of("<", 3, 6)[10:],
        b"http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation='6'/>",
    ],
)
def test_an_invalid_orientation_is_none(exif: bytes) -> None:
    data = with_segments(plain_jpeg(), segment(0xE1, exif))
    assert jpeg_orientation(data) == 1
    assert image_size_of(data) == HW


def test_exif_is_read_behind_other_segments_and_fill_bytes() -> None:
    others = [segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + bytes(60000))]
    others += [
        segment(0xE2, b"ICC_PROFILE\0" + bytes(65000)),
        segment(0xFE, b"Exif\0\0"),
        b"\xff\xff",
    ]
    data = with_segments(plain_jpeg(), *others, segment(0xE1, exif_of(">", 3, 8)))
    assert jpeg_orientation(data) == 8
    assert jpeg_orientation(memoryview(data)) == 8


def test_exif_in_the_pixels_is_not_read() -> None:
    jpeg = plain_jpeg()
    assert jpeg_orientation(jpeg + segment(0xE1, exif_of("<", 3, 6))) == 1


def test_a_jpeg_that_breaks_off_anywhere_raises_nothing() -> None:
    data = with_segments(plain_jpeg(), segment(0xE1, exif_of("<", 3, 6)))
    orientations = {jpeg_orientation(data[:end]) for end in range(200)}
    assert orientations == {1, 6}


def test_bytes_at_random_raise_nothing() -> None:
    draw = np.random.default_rng(0)
    start = with_segments(plain_jpeg(), segment(0xE1, exif_of("<", 3, 6)))[:120]
    for _ in range(500):
        data = bytearray(start)
        for place in draw.integers(2, 120, 4):
            data[place] = int(draw.integers(256))
        assert 1 <= jpeg_orientation(bytes(data)) <= 8
        png = b"\x89PNG\r\n\x1a\n" + draw.bytes(60)
        assert png_orientation(png) == 1


def png_with_exif_last() -> bytes:
    """As exiftool writes it: behind the pixels."""
    data = io.BytesIO()
    Image.fromarray(upright_image()).save(data, "PNG")
    png, exif = data.getvalue(), exif_of(">", 3, 3)[6:]
    chunk = struct.pack(">I", len(exif)) + b"eXIf" + exif
    chunk += struct.pack(">I", zlib.crc32(b"eXIf" + exif))
    return png[:-12] + chunk + png[-12:]


def test_exif_behind_the_pixels_of_a_png_is_read() -> None:
    data = png_with_exif_last()
    assert png_orientation(data) == 3
    np.testing.assert_array_equal(decode_image(data), upright_image()[::-1, ::-1])
    np.testing.assert_array_equal(decode_image(data), by_pillow(data))
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(rgb_pixels(image), upright_image()[::-1, ::-1])


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_an_opened_image_is_turned_as_its_bytes_are(
    tagged: Tagged, form: str, orientation: int
) -> None:
    data = tagged(upright_image(), orientation, form)
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(rgb_pixels(image), decode_image(data))
        np.testing.assert_array_equal(rgb_pixels(image), decode_image(data))  # loaded already


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_without_orientation_a_jpeg_keeps_its_pixels_and_its_other_exif(
    tagged: Tagged, orientation: int
) -> None:
    data = tagged(upright_image(), orientation)
    kept = without_orientation(data)
    assert jpeg_orientation(kept) == 1
    assert len(kept) == len(data)
    assert sum(a != b for a, b in zip(kept, data, strict=True)) == (orientation != 1)
    with Image.open(io.BytesIO(kept)) as image:
        assert image.getexif()[0x010F] == "a camera"
    stored = decode_smaller(data, 1.0, orientation=1).pixels
    np.testing.assert_array_equal(decode_image(kept), stored)


@pytest.mark.parametrize("data", [plain_jpeg(), b"", b"\xff\xd8", b"GIF89a", b"\x89PNG\r\n\x1a\n"])
def test_data_without_an_orientation_stay_as_they_are(data: bytes) -> None:
    assert without_orientation(data) == data


def test_without_orientation_a_png_keeps_its_pixels() -> None:
    kept = without_orientation(png_with_exif_last())
    assert png_orientation(kept) == 1
    np.testing.assert_array_equal(decode_image(kept), upright_image())
