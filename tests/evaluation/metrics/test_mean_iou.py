import math

import torch

from efficientsam_pl.evaluation.metrics.mean_iou import MeanIouBySize


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
