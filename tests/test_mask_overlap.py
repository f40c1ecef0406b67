"""IoU of masks: a slow loop, numbers by hand, and the same value for empty masks everywhere."""

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor

from efficientsam_pl.losses.config import MaskLossConfig
from efficientsam_pl.losses.mask_losses import segmentation_losses
from efficientsam_pl.mask_overlap import mask_iou
from efficientsam_pl.rle import encode, pair_iou
from efficientsam_pl.structures import Prediction

EMPTY, FULL = torch.zeros(3, 3, dtype=torch.bool), torch.ones(3, 3, dtype=torch.bool)
CORNER = torch.zeros(3, 3, dtype=torch.bool).index_fill(0, torch.tensor([0]), True)  # a third
PAIRS = [
    (EMPTY, EMPTY, 0.0),
    (FULL, EMPTY, 0.0),
    (EMPTY, FULL, 0.0),
    (FULL, FULL, 1.0),
    (CORNER, FULL, 1 / 3),
]


def test_iou_equals_a_slow_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(2, 3, 5, 7, generator=generator) < 0.4
    target = torch.rand(2, 1, 5, 7, generator=generator) < 0.6
    actual = mask_iou(masks, target)
    for i in range(2):
        for j in range(3):
            pairs = zip(
                masks[i, j].flatten().tolist(), target[i, 0].flatten().tolist(), strict=True
            )
            both = [(a and b, a or b) for a, b in pairs]
            expected = sum(shared for shared, _ in both) / sum(either for _, either in both)
            assert actual[i, j].item() == pytest.approx(expected, abs=1e-7)


def test_iou_of_two_overlapping_squares_is_one_seventh() -> None:
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, 0:4, 0:4] = True  # 16 pixels
    masks[1, 2:6, 2:6] = True  # 16 more, 4 of them shared
    torch.testing.assert_close(mask_iou(masks[0], masks[1]), torch.tensor(4 / 28))


@pytest.mark.parametrize(("mask", "truth", "expected"), PAIRS)
def test_loss_metric_and_pycocotools_agree(mask: Tensor, truth: Tensor, expected: float) -> None:
    """The IoU head, whose prediction is 0 here, errs by the square of the IoU that it learns."""
    assert mask_iou(mask, truth).item() == pytest.approx(expected, abs=1e-7)
    encoded = [[encode(np.asarray(m))] for m in (mask, truth)]
    assert pair_iou(*encoded).tolist() == pytest.approx([expected], abs=1e-12)
    logits = torch.where(mask, 1.0, -1.0).expand(1, 1, 2, 3, 3)
    prediction = Prediction(logits, torch.zeros(1, 1, 2))
    losses = segmentation_losses(prediction, truth[None, None], MaskLossConfig())
    assert losses.iou.item() == pytest.approx(expected**2, abs=1e-7)


def test_shapes_are_checked_in_tests() -> None:
    with pytest.raises(TypeCheckError):
        mask_iou(torch.zeros(3, 4, dtype=torch.bool), torch.zeros(4, 3, dtype=torch.bool))
