"""Teacher and student see the same upright pixels of an image with an EXIF orientation."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from efficientsam_pl.data.config import DataConfig
from efficientsam_pl.data.datasets.crops import crop_squares
from efficientsam_pl.data.features.image_maps import ImageMaps
from efficientsam_pl.data.features.views import Views
from efficientsam_pl.data.features.writer import Embedding, FeatureSource
from efficientsam_pl.data.images.decode import image_size_of
from efficientsam_pl.data.packing.runner import ArrayShare, run_packing
from efficientsam_pl.data.shards import open_shards
from efficientsam_pl.data.transforms import centre_crop

Tagged = Callable[..., bytes]
MAPS = ImageMaps(side=64, grid=4, exact=True)


@pytest.fixture
def image(noise: Callable[..., np.ndarray]) -> np.ndarray:
    return noise(0, 40, 64)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_inputs_of_the_teacher_are_those_of_the_upright_image(
    image: np.ndarray, orientation: int, tagged: Tagged, views: Views
) -> None:
    rotated, plain = tagged(image, orientation, "PNG"), tagged(image, 1, "PNG")
    for make_input in (views.teacher_input, MAPS.teacher_input):
        expected, result = make_input(plain, "key"), make_input(rotated, "key")
        assert result.content_hw == expected.content_hw
        assert result.squares.keys() == expected.squares.keys()
        for name, square in expected.squares.items():
            assert torch.equal(result.squares[name], square)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_the_student_sees_the_crop_of_the_upright_image(
    image: np.ndarray, orientation: int, tagged: Tagged
) -> None:
    rotated, plain = tagged(image, orientation, "PNG"), tagged(image, 1, "PNG")
    crop = centre_crop(image_size_of(rotated))
    assert crop == centre_crop((40, 64))
    [result], [expected] = (
        list(crop_squares(data, [crop], 32, exact=True)) for data in (rotated, plain)
    )
    assert torch.equal(result, expected)


def test_turned_images_of_a_store_are_counted(
    image: np.ndarray, tagged: Tagged, views: Views, tmp_path: Path, tar_of: Callable[..., Path]
) -> None:
    files = {f"p{o}.jpg": tagged(image, o) for o in (1, 3, 6)} | {"p0.jpg": b"no image"}
    images = open_shards(str(tar_of(tmp_path / "images.tar", files)))

    def embed(squares: Tensor, content_hw: Tensor) -> Iterator[Tensor]:
        yield squares.float().mean((2, 3))[:, None]

    embedding = Embedding(views.teacher_input, embed, 3, 3, "float16")
    source = FeatureSource(images, embedding, {"version": 1}, DataConfig(workers=0))
    for done_before in (0, 1):  # counted again from the shard's index
        summary = run_packing(source, str(tmp_path / "store"), ArrayShare(), 0, lambda _: None)
        assert (summary.samples, summary.done_before) == (3, done_before)
        assert summary.turns == {"turned": 2}
