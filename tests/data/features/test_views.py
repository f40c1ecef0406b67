from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch

from efficientsam_pl.data.config import CropConfig
from efficientsam_pl.data.datasets.crops import CropDataset
from efficientsam_pl.data.features.views import Views
from efficientsam_pl.data.reader import SampleReader
from efficientsam_pl.data.sampler import SampleRef
from efficientsam_pl.data.schema import IMAGE_SUFFIXES
from efficientsam_pl.data.shards import ShardSet
from efficientsam_pl.data.transforms import Crop


@pytest.mark.parametrize("count", [1, 2, 4, 7])
@pytest.mark.parametrize("epochs", [1, 4, 10, 21])
def test_no_view_is_used_again_before_all_are(count: int, epochs: int) -> None:
    views = Views(CropConfig(), count, seed=0, side=8, exact=False)
    for sample in ("a", "b", "folder/c"):
        used = Counter(views.of_epoch(5, epoch, sample) for epoch in range(epochs))
        assert set(used) <= set(range(count))
        assert all(epochs // count <= used[v] <= -(-epochs // count) for v in range(count))


def test_order_of_views_is_drawn_anew_for_samples_cycles_and_runs() -> None:
    views = Views(CropConfig(), 4, seed=0, side=8, exact=False)

    def order(seed: int, cycle: int, sample: str) -> tuple[int, ...]:
        return tuple(views.of_epoch(seed, 4 * cycle + turn, sample) for turn in range(4))

    for orders in (
        {order(seed, 0, "a") for seed in range(60)},
        {order(0, cycle, "a") for cycle in range(60)},
        {order(0, 0, f"s{n}") for n in range(60)},
    ):
        assert 15 < len(orders) <= 24  # of 24; 60 draws leave out two in the mean
    first = Counter(views.of_epoch(0, 0, f"s{n}") for n in range(400))
    assert min(first.values()) > 70  # 100 each


def test_views_are_the_crops_that_online_training_draws(images: ShardSet, views: Views) -> None:
    """Epoch v of a run with the store's seed crops as view v, to the pixel."""
    assert views.crop is not None
    reader = SampleReader([images], IMAGE_SUFFIXES)
    online = CropDataset(reader, views.crop, views.side, views.seed)
    for number in (0, 1, 3, 4):
        [read] = reader.read([SampleRef(0, number)])
        assert read is not None
        shown = views.teacher_input(read.files["jpg"], read.sample.key)
        assert shown.content_hw == (32, 32)
        assert list(shown.squares) == [f"view{v}.safetensors" for v in range(3)]
        for view, square in enumerate(shown.squares.values()):
            expected = online[SampleRef(view, number)].image
            assert expected is not None
            assert torch.equal(square, expected)


def test_views_of_held_out_images_are_the_centre(
    jpeg_of: Callable[[np.ndarray], bytes], noise: Callable[..., np.ndarray]
) -> None:
    views = Views(None, 1, seed=0, side=16, exact=True)
    assert views.crop_of(0, "a", (40, 60)) == Crop(0, 10, 40, 40, flip=False)
    assert list(views.teacher_input(jpeg_of(noise(0)), "a").squares) == ["centre.safetensors"]
    assert views.of_epoch(3, 17, "a") == 0


def test_crop_is_of_seed_view_and_sample_alone() -> None:
    two, other = (Views(CropConfig(), count, seed=2, side=8, exact=False) for count in (2, 9))
    crops = {
        (view, sample): two.crop_of(view, sample, (300, 400)) for view in (0, 1) for sample in "ab"
    }
    assert len({(c.top, c.left, c.height, c.width) for c in crops.values()}) == 4
    assert all(other.crop_of(*key, (300, 400)) == crop for key, crop in crops.items())
    assert Views(CropConfig(), 2, 3, 8, False).crop_of(0, "a", (300, 400)) != crops[0, "a"]
