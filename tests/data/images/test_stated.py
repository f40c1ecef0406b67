"""The frame of an annotated image, chosen by the size that the annotations state."""

from collections.abc import Callable

import numpy as np
import pytest

from efficientsam_pl.data.images.stated import decode_stated, exif_line, exif_setting
from efficientsam_pl.data.schema import CorruptSampleError

Tagged = Callable[..., bytes]
TALL, WIDE, SQUARE = (40, 24), (24, 40), (32, 32)


def marked(hw: tuple[int, int]) -> np.ndarray:
    """Grey with a white corner at the top left."""
    image = np.full((*hw, 3), 60, dtype=np.uint8)
    image[:8, :8] = 250
    return image


def corner(pixels: np.ndarray) -> tuple[bool, bool]:
    """Whether the white corner is at the bottom and at the right."""
    white = np.argwhere(pixels[..., 0] > 150)
    return tuple(white.min(0) > 0)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("exif_orientation", ["apply", "ignore"])
def test_a_quarter_turn_is_decided_by_the_stated_size(
    tagged: Tagged, orientation: int, exif_orientation: str
) -> None:
    data = tagged(marked(TALL), orientation)
    upright = decode_stated(data, TALL, exif_orientation)
    assert (upright.pixels.shape[:2], upright.turn) == (TALL, "turned")
    assert corner(upright.pixels) == (False, False)
    stored = decode_stated(data, WIDE, exif_orientation)
    assert (stored.pixels.shape[:2], stored.turn) == (WIDE, "as stored")


@pytest.mark.parametrize(("hw", "orientations"), [(WIDE, (2, 3, 4)), (SQUARE, range(2, 9))])
def test_where_both_frames_fit_the_key_decides(
    tagged: Tagged, hw: tuple[int, int], orientations: range
) -> None:
    for orientation in orientations:
        data = tagged(marked(hw), orientation)
        for stated in (hw, None):
            upright = decode_stated(data, stated)
            assert (corner(upright.pixels), upright.turn) == ((False, False), "turned")
            stored = decode_stated(data, stated, "ignore")
            assert stored.turn == "as stored"
            assert corner(stored.pixels) == {
                2: (False, True), 3: (True, True), 4: (True, False), 5: (False, False),
                6: (True, False), 7: (True, True), 8: (False, True),
            }[orientation]  # fmt: skip


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_size_that_fits_neither_frame_is_a_corrupt_sample(
    tagged: Tagged, orientation: int
) -> None:
    with pytest.raises(CorruptSampleError, match=r"size mismatch: image \(40, 24\).*\(40, 25\)"):
        decode_stated(tagged(marked(TALL), orientation), (40, 25))


def test_an_upright_image_has_only_one_frame(tagged: Tagged) -> None:
    data = tagged(marked(TALL), 1)
    assert decode_stated(data, TALL).turn is None
    with pytest.raises(CorruptSampleError, match="size mismatch"):
        decode_stated(data, WIDE)


@pytest.mark.parametrize(
    ("turns", "line"),
    [
        ({}, None),
        ({"turned": 1}, "1 image carries an EXIF rotation: 1 turned upright"),
        ({"as stored": 2}, "2 images carry an EXIF rotation: 2 read as stored"),
        (
            {"turned": 2, "as stored": 1},
            "3 images carry an EXIF rotation: 2 turned upright, 1 read as stored",
        ),
    ],
)
def test_rotations_are_summed_up_on_a_line(turns: dict[str, int], line: str | None) -> None:
    assert exif_line(turns) == line


def test_only_another_setting_than_the_default_is_recorded() -> None:
    assert exif_setting("apply") == {}
    assert exif_setting("ignore") == {"exif_orientation": "ignore"}
