"""Compare the image files of an annotated set with what the annotation file states of them."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from efficientsam_pl.data.coco.annotation_file import FileImage
from efficientsam_pl.data.images.decode import ImageHeader, read_header
from efficientsam_pl.data.images.orientation import UPRIGHT, turned_hw
from efficientsam_pl.data.images.stated import ExifOrientation, ExifTurn, orientation_to_apply
from efficientsam_pl.data.schema import CorruptSampleError
from efficientsam_pl.storage.files import consume_file, read_file

_JPEG_START, _HEADER_BYTES = b"\xff\xd8", 128 << 10
_THREADS = 16


@dataclass(frozen=True)
class HeaderCheck:
    """The header of an image file, as far as it can be used for its annotations.

    Args:
        image_hw: Height and width in the frame of the annotations.
        turn: Treatment of an EXIF rotation.
        undecided: Whether a rotated image fits its annotations both ways.
        error: Why the image cannot be used; it has no size then.
    """

    image_hw: tuple[int, int] = (0, 0)
    turn: ExifTurn = None
    undecided: bool = False
    error: CorruptSampleError | None = None


def check_headers(
    images: Sequence[FileImage], exif_orientation: ExifOrientation
) -> list[HeaderCheck]:
    """Read the headers of images; pixels are not decoded."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(partial(_check, exif_orientation=exif_orientation), images))


def _check(image: FileImage, exif_orientation: ExifOrientation) -> HeaderCheck:
    try:
        data, header = _read(image.path)
        applied, turn = orientation_to_apply(data, image.stated_hw, exif_orientation)
    except CorruptSampleError as error:
        return HeaderCheck(error=error)
    except OSError as error:
        return HeaderCheck(error=CorruptSampleError("bad photo", str(error)))
    upright = turned_hw(header.stored_hw, header.orientation)
    both_fit = image.stated_hw is None or header.stored_hw == upright
    return HeaderCheck(
        turned_hw(header.stored_hw, applied),
        turn,
        undecided=header.orientation != UPRIGHT and both_fit,
    )


def _read(path: str) -> tuple[bytes, ImageHeader]:
    """Read the bytes that hold the header, of a JPEG its beginning."""
    data = consume_file(path, lambda file: file.read(_HEADER_BYTES))
    if len(data) == _HEADER_BYTES and data.startswith(_JPEG_START):
        try:
            return data, read_header(data)
        except CorruptSampleError:
            pass  # a large thumbnail or profile precedes the size
    if len(data) == _HEADER_BYTES:
        data = read_file(path)
    return data, read_header(data)
