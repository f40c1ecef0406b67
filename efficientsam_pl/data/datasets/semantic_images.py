"""Images with label maps at their own size, by their places, in any order, for scoring."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from efficientsam_pl.data.datasets.semantic import label_map
from efficientsam_pl.data.datasets.stored_images import StoredImages
from efficientsam_pl.data.images.decode import decode_image
from efficientsam_pl.data.sample_files import encoded_image
from efficientsam_pl.data.schema import LABEL_SUFFIX
from efficientsam_pl.data.shards import ShardSet


@dataclass(frozen=True)
class SemanticImage:
    """An image with its label map; `number` identifies it within the set."""

    number: int
    image: UInt8[np.ndarray, "h w 3"]
    labels: UInt8[np.ndarray, "h w"]
    sha256: str


class SemanticImages(StoredImages[SemanticImage]):
    """The images of a set with their label maps."""

    def __init__(self, shards: ShardSet, classes: int) -> None:
        """Read label maps of `classes` classes; one with another is corrupt."""
        super().__init__(shards, LABEL_SUFFIX)
        self._classes = classes

    def _load(self, number: int, files: dict[str, memoryview], sha256: str) -> SemanticImage:
        labels = label_map(files, self._classes)
        return SemanticImage(number, decode_image(encoded_image(files)), labels, sha256)
