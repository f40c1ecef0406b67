"""The EXIF orientation of encoded images: read it without decoding, apply it, remove it.

A value from 1 to 8 states how the stored pixels are to be turned or mirrored for viewing; 1 and a
missing or invalid value: not at all. Only EXIF counts: an orientation in XMP is ignored, as by
viewers and OpenCV.
"""

import struct
from typing import TypeAlias

import numpy as np
from jaxtyping import UInt8
from PIL import Image

Data: TypeAlias = bytes | memoryview

UPRIGHT = 1
_SWAPS_SIDES = (5, 6, 7, 8)
_INVERSE = {6: 8, 8: 6}  # the others are their own inverse
_TAG = 0x0112
_UNSIGNED = {1: "B", 3: "H", 4: "I"}  # TIFF types of the value: byte, short, long
_PNG_START, _PNG_EXIF = b"\x89PNG\r\n\x1a\n", b"eXIf"
_EXIF_START = b"Exif\0\0"
# markers of a JPEG: with a length, except EXIF's; and without
_OTHER_SEGMENTS = frozenset({*range(0xFFC0, 0xFFD0), *range(0xFFDB, 0xFFF0), 0xFFFE} - {0xFFE1})
_NO_LENGTH = frozenset({0xFF01, *range(0xFFD0, 0xFFD9)})
_SEGMENT = struct.Struct(">HH").unpack_from


def turned_hw(image_hw: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Return height and width after the orientation is applied."""
    return image_hw[::-1] if orientation in _SWAPS_SIDES else image_hw


def turn_upright(
    pixels: UInt8[np.ndarray, "h w c"], orientation: int
) -> UInt8[np.ndarray, "uh uw c"]:
    """Turn stored pixels into the upright frame; without a turn, return them as they are."""
    if orientation == UPRIGHT:
        return pixels
    if orientation in _SWAPS_SIDES:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def inverse(orientation: int) -> int:
    """Return the orientation that undoes another one."""
    return _INVERSE.get(orientation, orientation)


def pillow_orientation(image: Image.Image) -> int:
    """Return the orientation that an opened Pillow image states and that is not yet applied.

    Pillow turns a TIFF while it loads it; an opened one states its size upright already.
    """
    if hasattr(image, "tag_v2"):
        return UPRIGHT
    exif = image.info.get("exif")
    return exif_orientation(exif) if isinstance(exif, bytes) else UPRIGHT


def exif_orientation(exif: Data) -> int:
    """Read the orientation of an EXIF block, with or without its "Exif" prefix."""
    place = _value_place(exif)
    if place is None:
        return UPRIGHT
    offset, form = place
    value = int(struct.unpack_from(form, exif, offset)[0])
    return value if 1 <= value <= 8 else UPRIGHT


def _value_place(exif: Data) -> tuple[int, str] | None:
    """Find the offset and format of the orientation's value; None where there is none."""
    start = 6 if bytes(exif[:6]) == _EXIF_START else 0
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(bytes(exif[start : start + 4]))
    if order is None:
        return None
    try:
        [first] = struct.unpack_from(order + "I", exif, start + 4)
        [count] = struct.unpack_from(order + "H", exif, start + first)
        for entry in range(start + first + 2, start + first + 2 + 12 * count, 12):
            tag, kind, values = struct.unpack_from(order + "HHI", exif, entry)
            if tag == _TAG:
                form = _UNSIGNED.get(kind)
                complete = entry + 12 <= len(exif) and values == 1
                return (entry + 8, order + form) if form and complete else None
    except struct.error:  # truncated
        return None
    return None


def jpeg_orientation(data: Data) -> int:
    """Read the orientation of a JPEG by a walk over its markers; other data state none."""
    block = _jpeg_exif(data)
    return UPRIGHT if block is None else exif_orientation(data[block[0] : block[1]])


def _jpeg_exif(data: Data) -> tuple[int, int] | None:
    """Find the first EXIF block of a JPEG, before its first scan.

    Runs for every sample of training: about 2 us.
    """
    if not is_jpeg(data):
        return None
    place = 2
    try:
        while True:
            marker, length = _SEGMENT(data, place)
            if marker in _OTHER_SEGMENTS:
                place += 2 + length
            elif marker == 0xFFE1:  # APP1: EXIF or XMP
                if data[place + 4 : place + 10] == _EXIF_START:
                    return place + 4, min(place + 2 + length, len(data))
                place += 2 + length
            elif marker == 0xFFFF:  # a fill byte
                place += 1
            elif marker in _NO_LENGTH:
                place += 2
            else:  # the first scan, the end, or no marker
                return None
    except struct.error:  # the data end
        return None


def png_orientation(data: Data) -> int:
    """Read the orientation of a PNG, whose EXIF chunk may follow the pixels; others: none."""
    chunk = _png_exif(data)
    return UPRIGHT if chunk is None else exif_orientation(data[chunk[0] + 8 : chunk[1] - 4])


def _png_exif(data: Data) -> tuple[int, int] | None:
    """Find the EXIF chunk of a PNG with its length, type and checksum."""
    if not is_png(data):
        return None
    place = len(_PNG_START)
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        following = place + 12 + length
        if kind == _PNG_EXIF:
            return (place, following) if following <= len(data) else None
        place = following
    return None


def is_png(data: Data) -> bool:
    """Return whether the data begin as a PNG."""
    return data[:8] == _PNG_START


def is_jpeg(data: Data) -> bool:
    """Return whether the data begin as a JPEG."""
    return data[:2] == b"\xff\xd8"


def without_orientation(data: Data) -> bytes:
    """Return a JPEG or PNG whose EXIF states no turn, with the same encoded pixels.

    The orientation of a JPEG is set to 1, so its other EXIF fields stay; a PNG loses its EXIF.
    Other data return as they are.
    """
    block = _jpeg_exif(data)
    if block is not None:
        place = _value_place(data[block[0] : block[1]])
        if place is None:
            return bytes(data)
        offset, form = place
        changed = bytearray(data)
        struct.pack_into(form, changed, block[0] + offset, UPRIGHT)
        return bytes(changed)
    chunk = _png_exif(data)
    return bytes(data) if chunk is None else bytes(data[: chunk[0]]) + bytes(data[chunk[1] :])
