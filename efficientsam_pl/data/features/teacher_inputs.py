"""What the teacher is shown of photos: read, decoded and cut by data workers, batch by batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from efficientsam_pl.data.datasets.base import SampleDataset, catch_corrupt_sample
from efficientsam_pl.data.decode import Data
from efficientsam_pl.data.reader import ReadSample, SampleReader
from efficientsam_pl.data.sample_files import image_of
from efficientsam_pl.data.sampler import SampleRef
from efficientsam_pl.structures import CorruptSample


@dataclass(frozen=True)
class TeacherInputSpec:
    """Squares of one photo by the ending that their features get.

    `content_hw` is the part of each that is photo, in pixels; the rest is padding.
    """

    squares: dict[str, UInt8[Tensor, "3 s s"]]
    content_hw: tuple[int, int]


Show: TypeAlias = Callable[
    [Data, str], TeacherInputSpec
]  # of a photo and its sample's key; sent to workers


@dataclass(frozen=True)
class TeacherInput:
    """One photo; `shown` None where it cannot be used, or where the slot is padding (key "")."""

    key: str
    shown: TeacherInputSpec | None
    damage: CorruptSample | None = None


@dataclass(frozen=True)
class TeacherInputBatch:
    """Squares of several photos, one photo's after the other's: those of `endings[i]` each."""

    key: tuple[str, ...]
    suffixes: tuple[tuple[str, ...], ...]
    damage: tuple[CorruptSample | None, ...]
    squares: UInt8[Tensor, "m 3 s s"]
    content_hw: Int64[Tensor, "m 2"]


class TeacherInputDataset(SampleDataset[TeacherInput]):
    """Photos as the teacher is shown them, in the order asked for."""

    def __init__(self, reader: SampleReader, show: Show) -> None:
        super().__init__(reader, seed=0)  # which is not used: nothing depends on an epoch
        self._show = show

    def collate(self, samples: Sequence[TeacherInput]) -> TeacherInputBatch:
        """A batch of what `__getitems__` gives; padding is left out."""
        photos = [photo for photo in samples if photo.key]
        real = [photo.shown for photo in photos if photo.shown is not None]
        squares = [square for shown in real for square in shown.squares.values()]
        sizes = [shown.content_hw for shown in real for _ in shown.squares]
        return TeacherInputBatch(
            key=tuple(photo.key for photo in photos),
            suffixes=tuple(() if p.shown is None else tuple(p.shown.squares) for p in photos),
            damage=tuple(photo.damage for photo in photos),
            squares=torch.stack(squares) if squares else torch.zeros(0, 3, 1, 1, dtype=torch.uint8),
            content_hw=torch.tensor(sizes, dtype=torch.int64).reshape(-1, 2),
        )

    def _prepared(self, slot: SampleRef, read: ReadSample | None) -> TeacherInput:
        if read is None:
            return TeacherInput("", None)
        key = read.sample.key
        shown, damage = catch_corrupt_sample(read, lambda: self._show(image_of(read.files), key))
        return TeacherInput(key, shown, damage)
