"""Held-out images in the model's frame, resized as a predictor does, with every scored mask.

Masks stay run-length at the image's full size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor

from efficientsam_pl.data.datasets.base import SampleDataset, catch_corrupt_sample
from efficientsam_pl.data.datasets.masks import Frame
from efficientsam_pl.data.mask_sampling import evaluable_masks, nonempty_masks
from efficientsam_pl.data.reader import ReadSample, SampleReader
from efficientsam_pl.data.sample_files import decode_annotated
from efficientsam_pl.data.sampler import SampleRef
from efficientsam_pl.geometry import Resize
from efficientsam_pl.rle import Rle
from efficientsam_pl.structures import CorruptSample, ScoringBatch


@dataclass(frozen=True)
class PreparedScoring:
    """One image with its masks; `image` is None for padding and corrupt samples."""

    key: str
    image: Float[Tensor, "3 s s"] | None
    resize: Resize
    truth: tuple[Rle, ...] = ()
    corrupt: CorruptSample | None = None


def prepare_eval_image(
    files: dict[str, memoryview],
) -> tuple[UInt8[ndarray, "h w 3"], tuple[Rle, ...]]:
    """Decode an image at its stored size, with its masks that are no crowd and not empty.

    Raises:
        CorruptSampleError: One of its files is missing or cannot be used.
    """
    image, record = decode_annotated(files)
    rles, _ = nonempty_masks(evaluable_masks(record.annotations))
    return image, tuple(rles)


class EvalDataset(SampleDataset[PreparedScoring]):
    """Validation: an image resized as for prediction, in floats, with all masks to score."""

    def __init__(self, reader: SampleReader, to: Frame) -> None:
        super().__init__(reader, seed=0)  # nothing is drawn
        self._to = to

    def collate(self, samples: Sequence[PreparedScoring]) -> ScoringBatch:
        """Collate the samples that `__getitems__` returns; a missing image is black."""
        side = self._to.side
        black = torch.zeros(3, side, side)
        return ScoringBatch(
            image=torch.stack([black if s.image is None else s.image for s in samples]),
            content_hw=torch.tensor([s.resize.content_hw for s in samples]),
            image_hw=tuple(s.resize.image_hw for s in samples),
            truth=tuple(s.truth for s in samples),
            valid=torch.tensor([s.image is not None for s in samples]),
            key=tuple(s.key for s in samples),
            corrupt=tuple(s.corrupt for s in samples if s.corrupt is not None),
        )

    def _prepared(self, sample_ref: SampleRef, read: ReadSample | None) -> PreparedScoring:
        side, rule = self._to.side, self._to.rule
        none = Resize.fit((side, side), side, rule)
        if read is None:
            return PreparedScoring("", None, none)
        content, corrupt = catch_corrupt_sample(read, lambda: prepare_eval_image(read.files))
        if content is None:
            return PreparedScoring(read.sample.key, None, none, corrupt=corrupt)
        image, truth = content
        resize = Resize.fit((image.shape[0], image.shape[1]), side, rule)
        inside = resize.image_forward(image)
        padding = (0, side - inside.shape[2], 0, side - inside.shape[1])
        return PreparedScoring(read.sample.key, F.pad(inside, padding), resize, truth)
