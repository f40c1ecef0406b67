"""What SAMI's loss is measured against, by numbers worked out by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Float
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from efficientsam_pl.structures import ImageBatch
from efficientsam_pl.training.callbacks.baseline import mean_features


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


def test_baseline_is_the_heldout_loss_of_the_best_constant(
    run: Any, shards: Path, tmp_path: Path
) -> None:
    """Trained on nothing, a student of ours starts well above it; a constant target is met."""
    heldout = f"data.heldout={shards}/heldout-*.tar"
    left = run("pretrain", tmp_path / "run", heldout, "trainer.max_steps=2")
    again = run("pretrain", tmp_path / "two", heldout, "trainer.max_steps=2", "run.seed=0")
    assert left.mean_feature_loss == again.mean_feature_loss
    assert 0 < left.mean_feature_loss < left.heldout_loss
