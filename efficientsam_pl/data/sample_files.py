"""The encoded image and the record among the files of one sample, and whether they fit."""

from efficientsam_pl.data.images.orientation import Data
from efficientsam_pl.data.images.stated import ExifOrientation, StatedImage, decode_stated
from efficientsam_pl.data.schema import (
    IMAGE_SUFFIXES,
    RECORD_SUFFIX,
    CorruptSampleError,
    Record,
    from_json,
)


def encoded_image(files: dict[str, memoryview]) -> Data:
    """Return the encoded image among a sample's files.

    Raises:
        CorruptSampleError: The sample has no image.
    """
    image = next((files[suffix] for suffix in IMAGE_SUFFIXES if suffix in files), None)
    if image is None:
        raise CorruptSampleError("missing photo", f"only {', '.join(sorted(files)) or 'nothing'}")
    return image


def read_record(files: dict[str, memoryview]) -> Record:
    """Parse the record among a sample's files.

    Raises:
        CorruptSampleError: The record is missing or cannot be read.
    """
    if RECORD_SUFFIX not in files:
        raise CorruptSampleError("missing json", f"only {', '.join(sorted(files)) or 'nothing'}")
    return from_json(bytes(files[RECORD_SUFFIX]))


def decode_annotated(
    files: dict[str, memoryview], exif_orientation: ExifOrientation = "apply"
) -> tuple[StatedImage, Record]:
    """Decode a masked image at full size in the frame of its record.

    Raises:
        CorruptSampleError: One of its files is missing or cannot be used.
    """
    data, record = encoded_image(files), read_record(files)
    return decode_stated(data, (record.height, record.width), exif_orientation), record
