"""The teacher's inputs: squares of each image, read, decoded and cropped by data workers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from efficientsam_pl.data.datasets.base import SampleDataset, catch_corrupt_sample
from efficientsam_pl.data.images.decode import read_header
from efficientsam_pl.data.images.orientation import UPRIGHT, Data
from efficientsam_pl.data.images.stated import ExifTurn
from efficientsam_pl.data.reader import ReadSample, SampleReader
from efficientsam_pl.data.sample_files import encoded_image
from efficientsam_pl.data.sampler import SampleRef
from efficientsam_pl.records import CorruptSample


@dataclass(frozen=True)
class TeacherInputSpec:
    """Squares of one image by the suffix of their feature files.

    `content_hw` is the part of each that the image covers, in pixels; the rest is padding.
    """

    squares: dict[str, UInt8[Tensor, "3 s s"]]
    content_hw: tuple[int, int]


MakeTeacherInput: TypeAlias = Callable[
    [Data, str], TeacherInputSpec
]  # from an encoded image and its sample's key; pickled for workers


@dataclass(frozen=True)
class TeacherInput:
    """One image; `content` is None for a corrupt sample, and for padding (key "")."""

    key: str
    content: TeacherInputSpec | None
    corrupt: CorruptSample | None = None
    turn: ExifTurn = None


@dataclass(frozen=True)
class TeacherInputBatch:
    """Squares of several images, image by image: those of `suffixes[i]` each."""

    key: tuple[str, ...]
    suffixes: tuple[tuple[str, ...], ...]
    corrupt: tuple[CorruptSample | None, ...]
    squares: UInt8[Tensor, "m 3 s s"]
    content_hw: Int64[Tensor, "m 2"]
    turns: tuple[ExifTurn, ...]


class TeacherInputDataset(SampleDataset[TeacherInput]):
    """Images as the teacher's input, in the requested order."""

    def __init__(self, reader: SampleReader, make_input: MakeTeacherInput) -> None:
        super().__init__(reader, seed=0)  # unused: nothing depends on an epoch
        self._make_input = make_input

    def collate(self, samples: Sequence[TeacherInput]) -> TeacherInputBatch:
        """Collate the samples that `__getitems__` returns, without padding."""
        real_samples = [sample for sample in samples if sample.key]
        contents = [sample.content for sample in real_samples if sample.content is not None]
        squares = [square for content in contents for square in content.squares.values()]
        sizes = [content.content_hw for content in contents for _ in content.squares]
        return TeacherInputBatch(
            key=tuple(sample.key for sample in real_samples),
            suffixes=tuple(
                () if p.content is None else tuple(p.content.squares) for p in real_samples
            ),
            corrupt=tuple(sample.corrupt for sample in real_samples),
            squares=torch.stack(squares) if squares else torch.zeros(0, 3, 1, 1, dtype=torch.uint8),
            content_hw=torch.tensor(sizes, dtype=torch.int64).reshape(-1, 2),
            turns=tuple(sample.turn for sample in real_samples),
        )

    def _prepared(self, sample_ref: SampleRef, read: ReadSample | None) -> TeacherInput:
        if read is None:
            return TeacherInput("", None)
        key = read.sample.key
        result, corrupt = catch_corrupt_sample(read, lambda: self._content(read, key))
        content, turn = (None, None) if result is None else result
        return TeacherInput(key, content, corrupt, turn)

    def _content(self, read: ReadSample, key: str) -> tuple[TeacherInputSpec, ExifTurn]:
        data = encoded_image(read.files)
        turn: ExifTurn = None if read_header(data).orientation == UPRIGHT else "turned"
        return self._make_input(data, key), turn
