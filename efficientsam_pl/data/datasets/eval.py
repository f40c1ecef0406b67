"""Held-out images in the model's frame, resized as a predictor does, with every scored mask.

Masks stay run-length at the image's full size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float
from torch import Tensor

from efficientsam_pl.data.datasets.base import SampleDataset, catch_corrupt_sample
from efficientsam_pl.data.datasets.image_sources import instance_image
from efficientsam_pl.data.datasets.masks import Frame
from efficientsam_pl.data.reader import ReadSample, SampleReader
from efficientsam_pl.data.sample_files import decode_annotated
from efficientsam_pl.data.sampler import SampleRef
from efficientsam_pl.geometry import Resize
from efficientsam_pl.records import CorruptSample, InstanceImage
from efficientsam_pl.structures import ScoringBatch


@dataclass(frozen=True)
class PreparedScoring:
    """One image; without `annotations` padding or a corrupt sample, which is black."""

    key: str
    number: int
    image: Float[Tensor, "3 s s"]
    content_hw: tuple[int, int]
    annotations: InstanceImage | None = None
    corrupt: CorruptSample | None = None


class EvalDataset(SampleDataset[PreparedScoring]):
    """Images for validation: resized as for prediction, in floats, with all masks to score."""

    def __init__(self, reader: SampleReader, to: Frame) -> None:
        super().__init__(reader, seed=0)  # nothing is drawn
        self._to = to

    def collate(self, samples: Sequence[PreparedScoring]) -> ScoringBatch:
        """Batch what `__getitems__` returns."""
        return ScoringBatch(
            image=torch.stack([sample.image for sample in samples]),
            content_hw=torch.tensor([sample.content_hw for sample in samples]),
            number=tuple(sample.number for sample in samples),
            annotations=tuple(sample.annotations for sample in samples),
            key=tuple(sample.key for sample in samples),
            corrupt=tuple(sample.corrupt for sample in samples if sample.corrupt is not None),
        )

    def _prepared(self, sample_ref: SampleRef, read: ReadSample | None) -> PreparedScoring:
        side = self._to.side
        black = torch.zeros(3, side, side)
        if read is None or sample_ref.sample is None:
            return PreparedScoring("", -1, black, (side, side))
        key = read.sample.key
        content, corrupt = catch_corrupt_sample(read, lambda: self._content(read))
        if content is None:
            return PreparedScoring(key, sample_ref.sample, black, (side, side), corrupt=corrupt)
        image, content_hw, annotations = content
        return PreparedScoring(key, sample_ref.sample, image, content_hw, annotations)

    def _content(
        self, read: ReadSample
    ) -> tuple[Float[Tensor, "3 s s"], tuple[int, int], InstanceImage]:
        """Decode the image into the model's frame, and its annotations."""
        stated, record = decode_annotated(read.files)
        annotations = instance_image(read.sample.key, record)
        resize = Resize.fit(annotations.image_hw, self._to.side, self._to.rule)
        inside = resize.image_forward(stated.pixels)
        padding = (0, resize.side - inside.shape[2], 0, resize.side - inside.shape[1])
        return F.pad(inside, padding), resize.content_hw, annotations
