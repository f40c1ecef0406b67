"""Stored feature maps of whole images: the stored part, and the features of any crop.

Axes: g the teacher's tokens a side, c channels, n the student's tokens.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Float32, Num
from torch import Tensor

from efficientsam_pl.data.features.roi_average import roi_average
from efficientsam_pl.data.features.teacher_inputs import TeacherInputSpec
from efficientsam_pl.data.images.decode import decode_smaller, image_size_of
from efficientsam_pl.data.images.orientation import Data
from efficientsam_pl.data.schema import WHOLE_SUFFIX
from efficientsam_pl.data.transforms import Crop, frame
from efficientsam_pl.geometry import Resize


@dataclass(frozen=True)
class ImageMaps:
    """Images in SAM's frame: the longer side is the square's, padding right and below.

    `side` is the square's in pixels, `grid` the map's cells along it. `exact`: JPEGs are decoded
    at full size.
    """

    side: int
    grid: int
    exact: bool

    def resize(self, image_hw: tuple[int, int]) -> Resize:
        """Return the placement of an image in the square."""
        return Resize.fit(image_hw, self.side, "pad")

    def cells(self, content_hw: tuple[int, int]) -> tuple[int, int]:
        """Return the rows and columns of the map that an image of this size covers, even partly."""
        height, width = content_hw
        return -(-height * self.grid // self.side), -(-width * self.grid // self.side)

    def teacher_input(self, data: Data, sample: str) -> TeacherInputSpec:
        """Place an image in the square.

        Raises:
            CorruptSampleError: The image cannot be decoded.
        """
        resize = self.resize(image_size_of(data))
        decoded = decode_smaller(data, 1.0 if self.exact else 1 / max(resize.scale_xy()))
        square = frame(decoded.pixels, resize, mirrored=False)
        return TeacherInputSpec({WHOLE_SUFFIX: square}, resize.content_hw)

    def kept(
        self, features: Float[Tensor, "c g g"], content_hw: tuple[int, int]
    ) -> Float[Tensor, "rows cols c"]:
        """Return the part of the teacher's map to store, averaged over blocks of its cells.

        A block at the image's edge is the mean of those of its cells that cover the image.
        """
        of_teacher = ImageMaps(self.side, features.shape[-1], self.exact)
        rows, cols = of_teacher.cells(content_hw)
        content = features[:, :rows, :cols]
        block = of_teacher.grid // self.grid
        if block > 1:  # ceil_mode's last window counts the existing cells only
            content = F.avg_pool2d(content[None], block, ceil_mode=True)[0]
        return content.permute(1, 2, 0)

    def of_crop(
        self,
        stored: Num[Tensor, "rows cols c"],
        crop: Crop,
        image_hw: tuple[int, int],
        grid: int,
    ) -> Float32[Tensor, "n c"]:
        """Return a crop's features on a grid of `grid` cells a side, row-major.

        A mirrored crop has the mirrored features of the straight one: the teacher never saw it.
        """
        corners = [crop.left, crop.top, crop.left + crop.width, crop.top + crop.height]
        pixels = torch.tensor([corners], dtype=torch.float64)
        in_square = self.resize(image_hw).boxes_forward(pixels)
        left, top, right, bottom = (in_square[0] * self.grid / self.side).tolist()
        means = roi_average(stored, (left, top, right, bottom), grid)
        return (means.flip(1) if crop.flip else means).flatten(0, 1)
