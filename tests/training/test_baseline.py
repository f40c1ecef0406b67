"""What SAMI's loss is measured against, by numbers worked out by hand."""

import itertools
from collections.abc import Iterator

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from efficientsam_pl.losses.features import mse_per_token
from efficientsam_pl.structures import ImageBatch
from efficientsam_pl.training.baseline import constant_loss, mean_features


class FirstPixel(nn.Module):
    """A teacher of one token and one channel: the first value of the photo, doubled."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))

    def forward(self, image: UInt8[Tensor, "b 3 s s"]) -> Float[Tensor, "b 1 1"]:
        return self.factor * image[:, 0, :1, :1].float()


def batch_of(values: list[int], valid: list[bool]) -> ImageBatch:
    image = torch.zeros(len(values), 3, 2, 2, dtype=torch.uint8)
    image[:, 0, 0, 0] = torch.tensor(values)
    return ImageBatch(image, torch.zeros(len(values)).long(), torch.tensor(valid), ("",) * 2)


def endless() -> Iterator[ImageBatch]:
    yield batch_of([1, 3], [True, True])
    yield batch_of([99, 98], [False, False])
    yield batch_of([5, 97], [True, True])
    yield from itertools.repeat(batch_of([96, 96], [True, True]))


def test_mean_feature_is_of_the_first_valid_crops_alone() -> None:
    mean = mean_features(FirstPixel(), endless(), crops=5)
    torch.testing.assert_close(mean, torch.full((1, 1, 1), 2 * (1 + 3 + 5) / 3))


def test_constant_is_scored_on_valid_photos_alone() -> None:
    batches = [batch_of([1, 3], [True, True]), batch_of([5, 99], [True, False])]
    loss = constant_loss(FirstPixel(), torch.full((1, 1, 1), 4.0), batches, mse_per_token)
    assert loss == ((2 - 4) ** 2 + (6 - 4) ** 2 + (10 - 4) ** 2) / 3
