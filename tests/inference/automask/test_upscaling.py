import numpy as np
import pytest
import torch

from efficientsam_pl.geometry import Resize, ResizeRule
from efficientsam_pl.inference.automask.upscaling import Upscaling

SIZES = [(1080, 1920), (603, 1072), (97, 131), (31, 400), (256, 256), (1, 5)]


@pytest.mark.parametrize("rule", ["squash", "pad"])
@pytest.mark.parametrize("image_hw", SIZES)
def test_rows_equal_masks_back(image_hw: tuple[int, int], rule: ResizeRule) -> None:
    resize = Resize.fit(image_hw, 1024, rule)
    low_res = 10 * torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    expected = resize.masks_back(low_res[None, None])[0, 0].numpy()
    actual = np.full(image_hw, np.nan, np.float32)
    for rows, logits in Upscaling(resize, 256).rows(low_res.numpy()):
        actual[rows] = logits
    np.testing.assert_allclose(actual, expected, rtol=0, atol=3e-6 * float(low_res.abs().max()))


@pytest.mark.parametrize("rule", ["squash", "pad"])
def test_the_mask_equals_that_of_full_size_logits(rule: ResizeRule) -> None:
    resize = Resize.fit((300, 500), 64, rule)
    low_res = 3 * torch.randn(16, 16, generator=torch.Generator().manual_seed(1))
    logits = resize.masks_back(low_res[None, None])[0, 0].numpy()
    upscaled = Upscaling(resize, 16).threshold(low_res.numpy(), 0.5)
    clear = np.abs(logits) > 1e-4
    np.testing.assert_array_equal(upscaled.mask[clear], logits[clear] > 0)
    expected = (logits > 0.5).sum() / (logits > -0.5).sum()
    assert upscaled.stability == pytest.approx(expected, rel=1e-4)


def test_a_mask_empty_at_both_thresholds_has_no_stability() -> None:
    upscaling = Upscaling(Resize.fit((20, 30), 64, "squash"), 16)
    upscaled = upscaling.threshold(np.full((16, 16), -9, np.float32), 1.0)
    assert upscaled.stability == 0
    assert not upscaled.mask.any()


def test_half_an_image_by_hand() -> None:
    low_res = np.full((16, 16), -8, np.float32)
    low_res[:, :8] = 8
    upscaled = Upscaling(Resize.fit((16, 16), 64, "squash"), 16).threshold(low_res, 1.0)
    assert upscaled.mask.sum() == 16 * 8
    assert upscaled.stability == 1
