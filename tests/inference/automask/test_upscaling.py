import numpy as np
import pytest
import torch

from efficientsam_pl.geometry import Resize, ResizeRule
from efficientsam_pl.inference.automask.upscaling import Upscaling

SIZES = [(1080, 1920), (603, 1072), (97, 131), (31, 400), (256, 256), (1, 5)]


@pytest.mark.parametrize("rule", ["squash", "pad"])
@pytest.mark.parametrize("image_hw", SIZES)
def test_rows_are_what_masks_back_makes(image_hw: tuple[int, int], rule: ResizeRule) -> None:
    resize = Resize.fit(image_hw, 1024, rule)
    low_res = 10 * torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    expected = resize.masks_back(low_res[None, None])[0, 0].numpy()
    found = np.full(image_hw, np.nan, np.float32)
    for rows, logits in Upscaling(resize, 256).rows(low_res.numpy()):
        found[rows] = logits
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-6 * float(low_res.abs().max()))


@pytest.mark.parametrize("rule", ["squash", "pad"])
def test_the_cut_is_that_of_full_size_logits(rule: ResizeRule) -> None:
    resize = Resize.fit((300, 500), 64, rule)
    low_res = 3 * torch.randn(16, 16, generator=torch.Generator().manual_seed(1))
    logits = resize.masks_back(low_res[None, None])[0, 0].numpy()
    cut = Upscaling(resize, 16).cut(low_res.numpy(), 0.5)
    surely = np.abs(logits) > 1e-4
    np.testing.assert_array_equal(cut.mask[surely], logits[surely] > 0)
    expected = (logits > 0.5).sum() / (logits > -0.5).sum()
    assert cut.stability == pytest.approx(expected, rel=1e-4)


def test_a_mask_empty_at_either_cut_has_no_stability() -> None:
    upscaling = Upscaling(Resize.fit((20, 30), 64, "squash"), 16)
    cut = upscaling.cut(np.full((16, 16), -9, np.float32), 1.0)
    assert cut.stability == 0
    assert not cut.mask.any()


def test_half_a_image_by_hand() -> None:
    low_res = np.full((16, 16), -8, np.float32)
    low_res[:, :8] = 8
    cut = Upscaling(Resize.fit((16, 16), 64, "squash"), 16).cut(low_res, 1.0)
    assert cut.mask.sum() == 16 * 8
    assert cut.stability == 1
