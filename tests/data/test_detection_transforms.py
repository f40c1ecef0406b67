"""Detection's geometry against detectron2's numbers and Pillow."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from efficientsam_pl.data.detection_config import JitterConfig
from efficientsam_pl.data.detection_transforms import (
    jittered,
    large_scale_jitter,
    place_image,
    place_masks,
    shortest_edge,
    tight_edges,
)
from efficientsam_pl.keyed_random import sample_key
from efficientsam_pl.rle import encode


def test_jitter_and_shortest_edge_are_detectron2s(shared: Path) -> None:
    golden = json.loads((shared / "golden/downstream/geometry.json").read_text())
    side = golden["target"]
    for row in golden["lsj"]:
        placement = jittered((row["h"], row["w"]), side, row["scale"], row["u"], flip=False)
        assert placement.resized_hw == (row["new_h"], row["new_w"])
        assert (placement.top, placement.left) == (row["crop_y"], row["crop_x"])
        assert placement.content_hw == (row["out_h"], row["out_w"])
    for height, width, short, longest, *resized in golden["shortest_edge"]:
        assert shortest_edge((height, width), short, longest) == tuple(resized)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("scale", "offset"), [(1.7, 0.6), (0.4, 0.9)])
def test_pixels_and_masks_lie_where_pillow_puts_them(
    flip: bool, scale: float, offset: float
) -> None:
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (37, 53, 3), dtype=np.uint8)
    masks = draw.random((3, 37, 53)) < 0.2
    masks[1] = False
    side = 48
    placement = jittered((37, 53), side, scale, offset, flip)
    (height, width), (rows, columns) = placement.resized_hw, placement.content_hw
    window = np.s_[placement.top : placement.top + rows, placement.left : placement.left + columns]

    def expected(image: np.ndarray, rule: Image.Resampling) -> np.ndarray:
        turned = np.ascontiguousarray(image[:, ::-1] if flip else image)
        whole = np.asarray(Image.fromarray(turned).resize((width, height), rule))[window]
        padding = ((0, side - rows), (0, side - columns), *[(0, 0)] * (image.ndim - 2))
        return np.pad(whole, padding)

    placed = place_image(pixels, placement, side)
    np.testing.assert_array_equal(placed, expected(pixels, Image.Resampling.BILINEAR))
    kept, indices = place_masks([encode(mask) for mask in masks], placement, side)
    assert indices.tolist() == [0, 2]
    for mask, index in zip(kept, indices, strict=True):
        grey = masks[index] * np.uint8(255)
        np.testing.assert_array_equal(mask, expected(grey, Image.Resampling.NEAREST) > 0)


def test_a_box_ends_behind_its_last_pixel() -> None:
    masks = np.zeros((2, 6, 8), dtype=bool)
    masks[0, 2:4, 1:5] = True
    masks[1, 5, 7] = True
    assert tight_edges(masks).tolist() == [[1, 2, 5, 4], [7, 5, 8, 6]]


def test_draws_cover_their_ranges_and_belong_to_the_sample() -> None:
    keys = [sample_key(1, 0, str(n)) for n in range(400)]
    config = JitterConfig()
    drawn = [large_scale_jitter((1000, 1000), 1000, config, key) for key in keys]
    assert drawn == [large_scale_jitter((1000, 1000), 1000, config, key) for key in keys]
    scales = np.array([placement.resized_hw[0] / 1000 for placement in drawn])
    assert scales.min() == pytest.approx(0.1, abs=0.02)
    assert scales.max() == pytest.approx(2.0, abs=0.02)
    assert scales.mean() == pytest.approx(1.05, abs=0.1)
    assert np.mean([placement.flip for placement in drawn]) == pytest.approx(0.5, abs=0.1)
