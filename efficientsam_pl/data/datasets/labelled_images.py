"""Labelled images of shards by their places, in any order, for scoring."""

from dataclasses import dataclass

from jaxtyping import UInt8
from torch import Tensor

from efficientsam_pl.data.datasets.labelled import ScoringView, class_number
from efficientsam_pl.data.datasets.stored_images import StoredImages
from efficientsam_pl.data.sample_files import encoded_image
from efficientsam_pl.data.schema import CLASS_SUFFIX
from efficientsam_pl.data.shards import ShardSet


@dataclass(frozen=True)
class LabelledImage:
    """An image at the model's size with its class; `number` identifies it within the set."""

    number: int
    image: UInt8[Tensor, "3 s s"]
    label: int
    sha256: str


class LabelledImages(StoredImages[LabelledImage]):
    """The labelled images of a set, seen as they are scored."""

    def __init__(self, shards: ShardSet, view: ScoringView, classes: int) -> None:
        super().__init__(shards, CLASS_SUFFIX)
        self._view, self._classes = view, classes

    def _load(self, number: int, files: dict[str, memoryview], sha256: str) -> LabelledImage:
        label = class_number(files, self._classes)
        return LabelledImage(number, self._view(encoded_image(files), 0), label, sha256)
