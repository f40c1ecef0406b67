"""Pasted masks against detectron2's pixels, and run-lengths against the masks."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from efficientsam_pl import rle
from efficientsam_pl.models.detection.pasting import paste_masks, paste_run_lengths

BOXES = torch.tensor(
    [
        [3.2, 4.7, 20.9, 30.1],  # inside
        [-6.0, -3.5, 12.0, 50.0],  # beyond every border
        [0.0, 0.0, 25.0, 40.0],  # the image: its columns are one run
        [10.0, 10.0, 10.0, 20.0],  # without an area
        [30.0, 5.0, 44.0, 9.0],  # outside
        [7.1, 8.2, 7.6, 8.4],  # smaller than a pixel, without a centre
        [float("nan"), 0.0, 5.0, 5.0],
    ]
)


def sampled(probs: Tensor, box: Tensor, height: int, width: int) -> Tensor:
    """detectron2's way over the whole image."""
    y = (torch.arange(height) + 0.5 - box[1]) / (box[3] - box[1]) * 2 - 1
    x = (torch.arange(width) + 0.5 - box[0]) / (box[2] - box[0]) * 2 - 1
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)
    return F.grid_sample(probs[None, None], grid[None], align_corners=False)[0, 0] >= 0.5


def test_pixels_and_areas_are_detectron2s(golden: Path) -> None:
    file = np.load(golden / "downstream/paste_masks.npz")
    height, width = (int(side) for side in file["image_hw"])
    probs, boxes = torch.from_numpy(file["masks"]), torch.from_numpy(file["boxes"])
    count = len(probs) * height * width
    expected = np.unpackbits(file["packed"], count=count).reshape(-1, height, width).astype(bool)
    masks = paste_masks(probs.float(), boxes.float(), (height, width)).numpy()
    runs = paste_run_lengths(probs.float(), boxes.float(), (height, width))
    for mask, truth, area, run in zip(masks, expected, file["area"], runs, strict=True):
        assert (mask != truth).sum() <= max(2, 0.001 * area)
        assert abs(int(mask.sum()) - area) <= max(2, 0.001 * area)
        assert (rle.decode(run) == mask).all()


@pytest.mark.parametrize("full", [False, True])
def test_odd_boxes_are_pasted_as_by_grid_sample_and_encoded_alike(full: bool) -> None:
    height, width = 40, 25
    generator = torch.Generator().manual_seed(3)
    probs = torch.rand(len(BOXES), 28, 28, generator=generator)
    if full:
        probs = torch.full_like(probs, 0.9)
    masks = paste_masks(probs, BOXES, (height, width))
    runs = paste_run_lengths(probs, BOXES, (height, width))
    for number, box in enumerate(BOXES):
        assert (rle.decode(runs[number]) == masks[number].numpy()).all()
        if bool((box[2:] > box[:2]).all()):
            assert torch.equal(masks[number], sampled(probs[number], box, height, width))
        else:
            assert not masks[number].any()
    assert bool(masks[2].all()) is full
    assert paste_run_lengths(probs[:0], BOXES[:0], (height, width)) == []
