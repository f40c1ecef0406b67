"""That sampled losses are compared with themselves from all pixels; the figures are not judged."""

import torch

from benchmarks.finetune.pixel_sampling import CELLS, SIDES, MaskPredictions, errors, noisy
from efficientsam_pl.mask_overlap import mask_iou


def predictions() -> MaskPredictions:
    masks = torch.zeros(1, 64, CELLS, CELLS, dtype=torch.bool)
    for q in range(64):
        masks[0, q, 2 * q : 2 * q + 90, 40 : 60 + 2 * q] = True
    return noisy(masks)


def test_predictions_are_about_right() -> None:
    predicted = predictions()
    logits = torch.nn.functional.interpolate(predicted.tokens, (CELLS, CELLS), mode="bilinear")
    iou = float(mask_iou(logits > 0, predicted.truth).mean())
    assert 0.5 < iou < 0.97


def test_all_pixels_as_points_err_nowhere() -> None:
    predicted = predictions()
    torch.testing.assert_close(predicted.losses(CELLS, 0).total, predicted.losses(None, 0).total)


def test_more_points_err_less() -> None:
    found = {
        row.id.removeprefix("finetune_sampling."): row.value for row in errors(predictions(), 1)
    }
    assert len(found) == 3 * len(SIDES)
    assert 0 < found["112x112.error_of_a_mask"] < found["16x16.error_of_a_mask"] < 1
    assert found["16x16.gradient_cosine"] < found["112x112.gradient_cosine"] < 1
    assert found["16x16.error_of_a_step"] < found["16x16.error_of_a_mask"]
