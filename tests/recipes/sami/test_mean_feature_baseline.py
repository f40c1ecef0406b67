"""The baseline of SAMI's loss, by numbers worked out by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Float
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from efficientsam_pl.losses.config import FeatureLossConfig
from efficientsam_pl.models.config import EncoderConfig, SamiConfig
from efficientsam_pl.recipes.sami.mean_feature_baseline import MeanFeatureBaseline, mean_features
from efficientsam_pl.structures import ImageBatch


class FirstPixel:
    """A target of one token and one channel: the first value of the photo, doubled."""

    width, teacher = 1, None

    def __call__(self, batch: ImageBatch) -> Float[Tensor, "b 1 1"]:
        return 2 * batch.image[:, 0, :1, :1].float()


def batch_of(values: list[int], valid: list[bool]) -> ImageBatch:
    image = torch.zeros(len(values), 3, 2, 2, dtype=torch.uint8)
    image[:, 0, 0, 0] = torch.tensor(values)
    return ImageBatch(image, torch.zeros(len(values)).long(), torch.tensor(valid), ("",) * 2)


def test_mean_feature_is_of_the_valid_crops_of_all_ranks() -> None:
    batches = [batch_of([1, 3], [True, True]), batch_of([99, 5], [False, True])]
    # a second rank has seen as much again
    mean = mean_features(FirstPixel(), batches, lambda value: 2 * value)
    torch.testing.assert_close(mean, torch.full((1, 1, 1), 2 * (1 + 3 + 5) / 3))


def test_no_valid_crop_gives_no_number_out_of_nothing() -> None:
    mean = mean_features(FirstPixel(), [batch_of([9, 9], [False, False])], lambda value: value)
    assert float(mean) == 0


def test_baseline_is_logged_once_and_kept_by_a_resumed_run(
    run: Any, shards: Path, tmp_path: Path
) -> None:
    folder, heldout = tmp_path / "run", f"data.heldout={shards}/heldout-*.tar"
    run("pretrain", folder, heldout, stop_after=3)
    left = run("pretrain", folder, heldout)
    logged = EventAccumulator(str(folder / "log"))
    logged.Reload()
    [event] = logged.Scalars("heldout/mean_feature_loss")
    assert event.value == pytest.approx(left.mean_feature_loss)


def test_baseline_is_the_loss_of_the_mean_by_hand() -> None:
    """One token a photo would leave none to see: four, of which the first pixel is all."""
    sami = SamiConfig(student=EncoderConfig(width=24, heads=3, image_size=32), mask_ratio=0.5)
    baseline = MeanFeatureBaseline(sami, FeatureLossConfig())
    batches = [batch_of([1, 3], [True, True]), batch_of([5, 99], [True, False])]
    constant = torch.full((1, 4, 1), 4.0)
    loss = baseline._constant_loss(FourTimes(), constant, batches, lambda value: value)
    assert loss == pytest.approx(((2 - 4) ** 2 + (6 - 4) ** 2 + (10 - 4) ** 2) / 3)


class FourTimes(FirstPixel):
    """The same at each of four positions."""

    def __call__(self, batch: ImageBatch) -> Float[Tensor, "b 4 1"]:
        return super().__call__(batch).expand(-1, 4, -1)
