"""Choose the frame of an annotated image: upright, or its pixels as they are stored.

Annotations belong to one of both; where only one has the stated size it is that one. Where both
have it (square images, half turns, mirrored ones) it is the upright frame, as detectron2 and
OpenCV read images, unless the set is known to be annotated on the stored pixels ("ignore").
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import UInt8

from efficientsam_pl.data.images.decode import decode_smaller, read_header
from efficientsam_pl.data.images.orientation import UPRIGHT, Data, turned_hw
from efficientsam_pl.data.schema import CorruptSampleError
from efficientsam_pl.plural import counted

ExifOrientation: TypeAlias = Literal["apply", "ignore"]
# what was done with an EXIF orientation other than 1; None: the image states none
ExifTurn: TypeAlias = Literal["turned", "as stored"] | None


@dataclass(frozen=True)
class StatedImage:
    """Pixels in the frame of the annotations."""

    pixels: UInt8[np.ndarray, "h w 3"]
    turn: ExifTurn


def decode_stated(
    data: Data, stated_hw: tuple[int, int] | None, exif_orientation: ExifOrientation = "apply"
) -> StatedImage:
    """Decode an image in the frame that its annotations belong to.

    Args:
        data: The encoded image.
        stated_hw: Height and width that the annotations state; None: unknown.
        exif_orientation: The frame where the size does not decide.

    Raises:
        CorruptSampleError: Not an image, a truncated one, or one of another size than stated.
    """
    applied, turn = orientation_to_apply(data, stated_hw, exif_orientation)
    return StatedImage(decode_smaller(data, 1.0, applied).pixels, turn)


def orientation_to_apply(
    data: Data, stated_hw: tuple[int, int] | None, exif_orientation: ExifOrientation = "apply"
) -> tuple[int, ExifTurn]:
    """Choose the orientation that brings an image into the frame of its annotations.

    Raises:
        CorruptSampleError: Not an image, or one of another size than stated.
    """
    header = read_header(data)
    stored, upright = header.stored_hw, turned_hw(header.stored_hw, header.orientation)
    if stated_hw not in (None, stored, upright):
        raise CorruptSampleError("size mismatch", f"image {upright}, annotations {stated_hw}")
    if header.orientation == UPRIGHT:
        return UPRIGHT, None
    both_fit = stated_hw is None or stored == upright
    if exif_orientation == "apply" if both_fit else stated_hw == upright:
        return header.orientation, "turned"
    return UPRIGHT, "as stored"


def exif_setting(exif_orientation: ExifOrientation) -> dict[str, str]:
    """Return the setting for a record of settings, which names it where it is not the default."""
    return {} if exif_orientation == "apply" else {"exif_orientation": exif_orientation}


def exif_line(turns: Mapping[str, int]) -> str | None:
    """Format the number of images with an EXIF rotation by what was done; None without any."""
    turned, stored = turns.get("turned", 0), turns.get("as stored", 0)
    if not turned + stored:
        return None
    carry = "carries" if turned + stored == 1 else "carry"
    done = [f"{turned} turned upright"] if turned else []
    done += [f"{stored} read as stored"] if stored else []
    return f"{counted(turned + stored, 'image')} {carry} an EXIF rotation: {', '.join(done)}"
