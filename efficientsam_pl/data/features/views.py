"""Stored views: a few crops of each image, and the choice of one for each epoch."""

from dataclasses import dataclass

import numpy as np

from efficientsam_pl.data.config import CropConfig
from efficientsam_pl.data.datasets.crops import crop_squares
from efficientsam_pl.data.features.teacher_inputs import TeacherInputSpec
from efficientsam_pl.data.images.decode import image_size_of
from efficientsam_pl.data.images.orientation import Data
from efficientsam_pl.data.schema import CENTRE_SUFFIX, view_suffix
from efficientsam_pl.data.transforms import Crop, crop_of
from efficientsam_pl.keyed_random import sample_key, uniform_of


@dataclass(frozen=True)
class Views:
    """The crops of an image whose features are stored, as functions of (seed, view, sample).

    With `crop` None it is the centre alone, for held-out images. `exact`: JPEGs are decoded at
    full size.
    """

    crop: CropConfig | None
    count: int
    seed: int
    side: int
    exact: bool

    def crop_of(self, view: int, sample: str, image_hw: tuple[int, int]) -> Crop:
        """Return a view's rectangle of an image of this size."""
        return crop_of(image_hw, self.crop, sample_key(self.seed, view, sample))

    def suffix(self, view: int) -> str:
        """Suffix of the file with a view's features."""
        return CENTRE_SUFFIX if self.crop is None else view_suffix(view)

    def of_epoch(self, seed: int, epoch: int, sample: str) -> int:
        """Return the view that an epoch of a run with this seed uses.

        In every `count` epochs each view is used once, in an order drawn for each sample.
        """
        cycle, turn = divmod(epoch, self.count)
        drawn = uniform_of(sample_key(seed, cycle, sample), self.count, "view order")
        return int(np.argsort(drawn, kind="stable")[turn])

    def teacher_input(self, data: Data, sample: str) -> TeacherInputSpec:
        """Crop all views of an image.

        Raises:
            CorruptSampleError: The image cannot be decoded.
        """
        image_hw = image_size_of(data)
        crops = [self.crop_of(view, sample, image_hw) for view in range(self.count)]
        cropped = crop_squares(data, crops, self.side, self.exact)
        return TeacherInputSpec(
            {self.suffix(v): square for v, square in enumerate(cropped)}, (self.side, self.side)
        )
