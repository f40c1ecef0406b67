"""The encoded image and the record among the files of one sample, and whether they fit."""

import numpy as np
from jaxtyping import UInt8

from efficientsam_pl.data.images.decode import Data, decode_image
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


def check_size(record: Record, image_hw: tuple[int, int]) -> None:
    """Raise CorruptSampleError where the annotations belong to an image of another size."""
    if image_hw != (record.height, record.width):
        raise CorruptSampleError(
            "size mismatch", f"image {image_hw}, json {(record.height, record.width)}"
        )


def decode_annotated(files: dict[str, memoryview]) -> tuple[UInt8[np.ndarray, "h w 3"], Record]:
    """Decode a masked image at its stored size, with its record.

    Raises:
        CorruptSampleError: One of its files is missing or cannot be used.
    """
    image = decode_image(encoded_image(files))
    record = read_record(files)
    check_size(record, (image.shape[0], image.shape[1]))
    return image, record
