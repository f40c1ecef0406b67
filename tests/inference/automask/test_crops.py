import numpy as np
import pytest

from efficientsam_pl.inference.automask.config import EverythingConfig
from efficientsam_pl.inference.automask.crops import Crop, build_point_grid, generate_crop_boxes


def test_crops_by_hand() -> None:
    crops = generate_crop_boxes((100, 200), 1, 0.3)
    # overlap int(0.3 * 100 * 2 / 2) = 30: ceil((30 + 200) / 2) = 115 wide, 65 high, steps 85, 35
    assert [crop.xyxy for crop in crops] == [
        (0, 0, 200, 100),
        (0, 0, 115, 65),
        (0, 35, 115, 100),
        (85, 0, 200, 65),
        (85, 35, 200, 100),
    ]
    assert [crop.layer for crop in crops] == [0, 1, 1, 1, 1]
    assert crops[3].xywh() == [85, 0, 115, 65]


@pytest.mark.parametrize("image_hw", [(603, 1072), (37, 41), (3, 1000), (1, 1)])
@pytest.mark.parametrize("ratio", [0.0, 512 / 1500, 1.0])
def test_crops_of_a_layer_cover_the_image(image_hw: tuple[int, int], ratio: float) -> None:
    boxes = generate_crop_boxes(image_hw, 3, ratio)
    for layer in range(4):
        seen = np.zeros(image_hw, dtype=bool)
        for crop in boxes:
            if crop.layer == layer:
                x0, y0, x1, y1 = crop.xyxy
                assert x0 < x1
                assert y0 < y1
                seen[y0:y1, x0:x1] = True
        assert seen.all()


def test_clicks_are_the_centres_of_equal_cells_row_by_row() -> None:
    points = build_point_grid(Crop((10, 20, 50, 30), 0), EverythingConfig(points_per_side=2))
    assert points.tolist() == [[10, 2.5], [30, 2.5], [10, 7.5], [30, 7.5]]


def test_the_notebooks_clicks_lie_half_a_pixel_from_corners_column_by_column() -> None:
    config = EverythingConfig(points_per_side=2, grid="corners")
    points = build_point_grid(Crop((0, 0, 40, 10), 0), config)
    assert points.tolist() == [[0.5, 0.5], [0.5, 5.5], [20.5, 0.5], [20.5, 5.5]]
