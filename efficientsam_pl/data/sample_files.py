"""The encoded image and the record among the files of one sample, and whether they fit."""

import numpy as np
from jaxtyping import UInt8

from efficientsam_pl.data.decode import Data, decode_image
from efficientsam_pl.data.schema import (
    IMAGE_SUFFIXES,
    RECORD_ENDING,
    CorruptSampleError,
    Record,
    from_json,
)


def image_of(files: dict[str, memoryview]) -> Data:
    """The photo among a sample's files, still encoded.

    Raises:
        CorruptSampleError: There is none.
    """
    photo = next((files[suffix] for suffix in IMAGE_SUFFIXES if suffix in files), None)
    if photo is None:
        raise CorruptSampleError("missing photo", f"only {', '.join(sorted(files)) or 'nothing'}")
    return photo


def record_of(files: dict[str, memoryview]) -> Record:
    """The annotations among a sample's files.

    Raises:
        CorruptSampleError: There are none, or they cannot be read.
    """
    if RECORD_ENDING not in files:
        raise CorruptSampleError("missing json", f"only {', '.join(sorted(files)) or 'nothing'}")
    return from_json(bytes(files[RECORD_ENDING]))


def check_size(record: Record, image_hw: tuple[int, int]) -> None:
    """Raises CorruptSampleError where annotations belong to a photo of another size."""
    if image_hw != (record.height, record.width):
        raise CorruptSampleError(
            "size mismatch", f"photo {image_hw}, json {(record.height, record.width)}"
        )


def annotated(files: dict[str, memoryview]) -> tuple[UInt8[np.ndarray, "h w 3"], Record]:
    """A masked image as it is stored.

    Raises:
        CorruptSampleError: One of its files is missing or cannot be used.
    """
    image = decode_image(image_of(files))
    record = record_of(files)
    check_size(record, (image.shape[0], image.shape[1]))
    return image, record
