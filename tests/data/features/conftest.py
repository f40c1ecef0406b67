"""A small set of images, and a teacher whose features anyone can compute: means of pixels."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from efficientsam_pl.data.config import CropConfig, DataConfig
from efficientsam_pl.data.features.views import Views
from efficientsam_pl.data.features.writer import Embedding, FeatureSource
from efficientsam_pl.data.packing.runner import ArrayShare, run_packing
from efficientsam_pl.data.packing.writer import PackSummary
from efficientsam_pl.data.shards import ShardSet, open_shards

GRID, SIDE, CHANNELS = 4, 32, 5


def mean_features(image: Tensor) -> Tensor:
    """[b, 3, s, s] to [b, 16, 5]: colour means of 4 x 4 cells, their sum and a constant."""
    means = F.adaptive_avg_pool2d(image.float(), GRID).flatten(2).transpose(1, 2)
    return torch.cat([means, means.sum(-1, keepdim=True), torch.ones_like(means[..., :1])], dim=-1)


def _embed(squares: Tensor, content_hw: Tensor) -> Iterator[Tensor]:
    yield mean_features(squares)


@pytest.fixture(scope="session")
def teacher() -> Callable[[Tensor], Tensor]:
    return mean_features


@pytest.fixture
def images(
    tmp_path: Path,
    tar_of: Callable[..., Path],
    jpeg_of: Callable[[np.ndarray], bytes],
    noise: Callable[..., np.ndarray],
) -> ShardSet:
    """Eight images of several sizes in three shards; p5 is none."""
    sizes = [(40, 60), (90, 50), (64, 64), (33, 120), (200, 140), (40, 40), (70, 65), (48, 49)]
    files = {f"p{i}.jpg": jpeg_of(noise(i, *hw)) for i, hw in enumerate(sizes)}
    files["p5.jpg"] = b"no photo"
    (tmp_path / "photos").mkdir()
    for number, numbers in enumerate(([0, 1, 2], [3, 4, 5], [6, 7])):
        content = {f"p{i}.jpg": files[f"p{i}.jpg"] for i in numbers}
        tar_of(tmp_path / "photos" / f"set-{number}.tar", content)
    return open_shards(f"{tmp_path}/photos/*.tar")


@pytest.fixture
def views() -> Views:
    return Views(CropConfig(min_area=0.3), count=3, seed=11, side=SIDE, exact=False)


@pytest.fixture
def written(images: ShardSet, views: Views, tmp_path: Path) -> Callable[..., PackSummary]:
    """Writes the features of the images' views to a folder."""

    def write(folder: str = "store", share: ArrayShare | None = None, **other: Any) -> PackSummary:
        given = {
            "make_input": views.teacher_input,
            "embed": _embed,
            "squares_per_image": 3,
            "batch": 5,
        }
        embedding = Embedding(**({"numbers": "float16"} | given | other))  # type: ignore[arg-type]
        source = FeatureSource(images, embedding, {"version": 1}, DataConfig(workers=0))
        out = str(tmp_path / folder)
        return run_packing(source, out, share or ArrayShare(), 0, lambda weight: None)

    return write
