"""Masked images into shards. A shard appears under its name only when it is whole."""

import io
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import webdataset
from jaxtyping import UInt8
from PIL import Image

from efficientsam_pl.data.schema import Annotation, Record, annotation_of, to_json
from efficientsam_pl.rle import Rle, decode, encode

JPEG_QUALITY = 92


@dataclass(frozen=True)
class MaskedPhoto:
    """A photo with its masks at the photo's size."""

    key: str
    image: UInt8[np.ndarray, "h w 3"]
    annotations: tuple[Annotation, ...]


@dataclass
class PackSummary:
    """What was written and what was left out."""

    photos: int = 0
    masks: int = 0
    shards: int = 0
    bytes: int = 0
    skipped: tuple[str, ...] = ()


class ShardWriter(AbstractContextManager["ShardWriter"]):
    """Writes `OUT/PREFIX-000000.tar`...; each is written aside, synced and renamed.

    A shard is closed when it holds `samples_per_shard` samples. Leaving with an exception drops
    the shard that is being written.
    """

    def __init__(self, folder: Path, prefix: str, samples_per_shard: int = 1000) -> None:
        self._folder, self._prefix, self._limit = folder, prefix, samples_per_shard
        self._writer: webdataset.TarWriter | None = None
        self._in_shard = 0
        self.summary = PackSummary()
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, photo: MaskedPhoto) -> None:
        """Adds one photo; its JPEG is written at quality 92 without colour subsampling."""
        if self._writer is None:
            self._writer = webdataset.TarWriter(str(self._temporary()), mtime=0)
        height, width = photo.image.shape[:2]
        record = Record(width, height, photo.annotations)
        jpeg = io.BytesIO()
        Image.fromarray(photo.image).save(jpeg, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        json = to_json(f"{photo.key}.jpg", record)
        self._writer.write({"__key__": photo.key, "jpg": jpeg.getvalue(), "json": json})
        self.summary.photos += 1
        self.summary.masks += len(photo.annotations)
        self._in_shard += 1
        if self._in_shard == self._limit:
            self._close_shard()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._close_shard()
        elif self._writer is not None:
            self._writer.close()
            self._temporary().unlink()

    def _close_shard(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        final = self._folder / f"{self._prefix}-{self.summary.shards:06d}.tar"
        with self._temporary().open("rb") as file:
            os.fsync(file.fileno())
        self._temporary().replace(final)
        self.summary.shards += 1
        self.summary.bytes += final.stat().st_size
        self._writer, self._in_shard = None, 0

    def _temporary(self) -> Path:
        return self._folder / f".{self._prefix}-{self.summary.shards:06d}.tar.part"


def limit_side(photo: MaskedPhoto, longest: int) -> MaskedPhoto:
    """The photo and its masks scaled down together so that no side exceeds `longest` pixels."""
    height, width = photo.image.shape[:2]
    if max(height, width) <= longest:
        return photo
    scale = longest / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = np.array(Image.fromarray(photo.image).resize(size, Image.Resampling.LANCZOS))
    annotations = [
        annotation_of(_resized(a.rle, size), a.crowd) for a in photo.annotations if a.area > 0
    ]
    return MaskedPhoto(photo.key, image, tuple(a for a in annotations if a.area > 0))


def pack(photos: Iterable[MaskedPhoto], folder: Path, prefix: str) -> PackSummary:
    """Writes all photos into shards of one prefix."""
    with ShardWriter(folder, prefix) as writer:
        for photo in photos:
            writer.write(photo)
    return writer.summary


def _resized(rle: Rle, size: tuple[int, int]) -> Rle:
    mask = Image.fromarray(decode(rle).astype(np.uint8) * 255)
    return encode(np.array(mask.resize(size, Image.Resampling.BOX)) >= 128)
