import math

import pytest
import torch
from jaxtyping import TypeCheckError

from efficientsam_pl.evaluation.metrics import MeanIouBySize, mask_iou


def test_iou_equals_a_slow_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(2, 3, 5, 7, generator=generator) < 0.4
    target = torch.rand(2, 1, 5, 7, generator=generator) < 0.6
    found = mask_iou(masks, target)
    for i in range(2):
        for j in range(3):
            pairs = zip(
                masks[i, j].flatten().tolist(), target[i, 0].flatten().tolist(), strict=True
            )
            both = [(a and b, a or b) for a, b in pairs]
            expected = sum(shared for shared, _ in both) / sum(either for _, either in both)
            assert found[i, j].item() == pytest.approx(expected, abs=1e-7)


def test_iou_of_two_overlapping_squares_is_one_seventh() -> None:
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, 0:4, 0:4] = True  # 16 pixels
    masks[1, 2:6, 2:6] = True  # 16 more, 4 of them shared
    torch.testing.assert_close(mask_iou(masks[0], masks[1]), torch.tensor(4 / 28))


def test_iou_of_empty_masks() -> None:
    empty, full = torch.zeros(3, 3, dtype=torch.bool), torch.ones(3, 3, dtype=torch.bool)
    assert mask_iou(empty, empty) == 1
    assert mask_iou(full, empty) == 0
    assert mask_iou(empty, full) == 0


def test_shapes_are_checked_in_tests() -> None:
    with pytest.raises(TypeCheckError):
        mask_iou(torch.zeros(3, 4, dtype=torch.bool), torch.zeros(4, 3, dtype=torch.bool))


def test_mean_iou_counts_every_mask_once() -> None:
    metric = MeanIouBySize()
    metric.update(torch.tensor([1.0, 0.5, 0.0]), torch.tensor([0, 2, 0]))
    metric.update(torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    metric.update(torch.tensor([0.5]), torch.tensor([2]))
    found = metric.compute()
    assert found["all"] == (0.5, 4)
    assert found["small"] == (0.5, 2)
    assert found["large"] == (0.5, 2)
    assert math.isnan(found["medium"].value)
    assert found["medium"].masks == 0


def test_mean_iou_keeps_small_addends() -> None:
    metric = MeanIouBySize()
    metric.update(torch.ones(1 << 24), torch.zeros(1 << 24, dtype=torch.int64))
    for _ in range(16):
        metric.update(torch.ones(1), torch.zeros(1, dtype=torch.int64))  # float32 would stand still
    assert metric.total[0] == (1 << 24) + 16


def test_mean_iou_of_nothing_is_nan() -> None:
    metric = MeanIouBySize()
    metric.update(torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert {math.isnan(mean.value) for mean in metric.compute().values()} == {True}
