import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from efficientsam_pl.evaluation.metrics.semantic_iou import (
    SemanticIou,
    confusion,
    mean_accuracy,
    mean_iou,
    pixel_accuracy,
)
from efficientsam_pl.evaluation.position_baseline import labels_at, position_baseline


def bytes_of(rows: list[list[int]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.uint8)


def test_scores_equal_the_golden_ones(golden: Path) -> None:
    expected = json.loads((golden / "downstream/miou.json").read_text())
    metric = SemanticIou(expected["classes"])
    with np.load(golden / "downstream/miou.npz") as arrays:
        for n in range(len(arrays.files) // 2):
            metric.update(*(torch.from_numpy(arrays[f"{kind}_{n}"]) for kind in ("pred", "truth")))
    by_class = [np.nan if value is None else value for value in expected["iou"]]
    assert (100 * metric.by_class()).tolist() == pytest.approx(by_class, abs=1e-9, nan_ok=True)
    matrix = metric.confmat
    ours = [100 * score(matrix) for score in (mean_iou, mean_accuracy, pixel_accuracy)]
    theirs = [expected[name] for name in ("mIoU", "mACC", "pACC")]
    assert ours == pytest.approx(theirs, abs=1e-9, rel=0)
    assert 100 * float(metric.compute()) == pytest.approx(expected["mIoU"], abs=1e-9, rel=0)


def test_class_that_is_only_predicted_is_no_term_of_the_mean() -> None:
    metric = SemanticIou(4)
    metric.update(bytes_of([[0, 0, 3, 1]]), bytes_of([[0, 0, 0, 255]]))
    assert float(metric.compute()) == pytest.approx(2 / 3)  # with class 3 as 0 it would be 1/3
    assert metric.by_class().isnan().tolist() == [False, True, True, True]


def test_image_that_is_wholly_ignored_counts_nowhere() -> None:
    assert not confusion(bytes_of([[1, 2]]), bytes_of([[255, 255]]), 3).any()
    empty = SemanticIou(3)
    empty.update(bytes_of([[1, 2]]), bytes_of([[255, 255]]))
    assert empty.compute().isnan()


def test_maps_counted_apart_add_up_to_those_counted_together() -> None:
    draw = np.random.default_rng(0)
    maps = torch.from_numpy(draw.integers(0, 150, (2, 3, 20, 30), dtype=np.uint8))
    together = SemanticIou(150)
    together.update(maps[0], maps[1])
    apart = torch.stack([confusion(p, t, 150) for p, t in zip(*maps, strict=True)]).sum(0)
    assert torch.equal(together.confmat, apart)


def test_position_baseline_is_the_most_frequent_class_there() -> None:
    maps = [[[0, 1], [2, 255]], [[1, 1], [2, 255]], [[1, 0], [255, 255]]]
    arrays = [np.array(labels, np.uint8) for labels in maps]
    baseline = position_baseline(arrays, 3, (2, 2))
    assert baseline.tolist() == [[1, 1], [2, 1]]  # below right: the most frequent of all
    large = labels_at(baseline, (4, 4))
    assert large.tolist() == np.repeat(np.repeat(baseline, 2, 0), 2, 1).tolist()
