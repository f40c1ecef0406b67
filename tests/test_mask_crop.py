"""Masks that are cropped by their runs, against decoded pixels."""

import numpy as np

from efficientsam_pl.mask_crop import crop_runs
from efficientsam_pl.rle import decode, encode, encode_many, from_runs, run_lengths


def test_crop_of_runs_is_the_crop_of_pixels() -> None:
    draw = np.random.default_rng(0)
    for _ in range(60):
        height, width = map(int, draw.integers(1, 24, 2))
        masks = draw.random((5, height, width)) < draw.choice([0.0, 0.1, 0.5, 0.95, 1.0], (5, 1, 1))
        top, left = int(draw.integers(height)), int(draw.integers(width))
        size = (int(draw.integers(1, height - top + 1)), int(draw.integers(1, width - left + 1)))
        runs = crop_runs(run_lengths(encode_many(masks)), height, (top, left), size)
        for mask, cropped in zip(masks, runs, strict=True):
            wanted = mask[top : top + size[0], left : left + size[1]]
            np.testing.assert_array_equal(decode(from_runs(cropped, *size)), wanted)
            assert from_runs(cropped, *size) == encode(wanted)  # the same text, not only pixels


def test_no_masks_crop_to_none() -> None:
    assert crop_runs([], 4, (0, 0), (2, 2)) == []
