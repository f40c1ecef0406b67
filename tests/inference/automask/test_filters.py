import numpy as np

from efficientsam_pl.inference.automask.filters import (
    is_box_near_crop_edge,
    mask_boxes,
    postprocess_small_regions,
    suppress_duplicates,
)
from efficientsam_pl.inference.automask.records import MaskSet
from efficientsam_pl.rle import decode, encode


def mask_set(*masks: np.ndarray) -> MaskSet:
    rles = tuple(encode(mask) for mask in masks)
    n = len(masks)
    return MaskSet(
        rles,
        mask_boxes(list(rles)),
        np.linspace(0.5, 0.9, n, dtype=np.float32),
        np.ones(n, np.float32),
        np.zeros((n, 2)),
        np.tile(np.array([0, 0, 40, 30]), (n, 1)),
    )


def box(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((30, 40), dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_boxes_go_through_the_outermost_pixels_and_an_empty_mask_has_a_point() -> None:
    rles = [encode(box(3, 4, 10, 6)), encode(box(0, 0, 0, 0))]
    assert mask_boxes(rles).tolist() == [[3, 4, 9, 5], [0, 0, 0, 0]]
    assert mask_boxes(rles, (7, 8))[1].tolist() == [7, 8, 7, 8]


def test_twenty_pixels_from_a_crops_edge_is_near_and_the_images_edge_does_not_count() -> None:
    crop, image_hw = (100, 0, 300, 200), (200, 400)
    boxes = np.array(
        [
            [120, 50, 250, 100],  # 20 from the left
            [121, 50, 250, 100],
            [150, 0, 250, 100],  # the top edge of crop and image
            [150, 50, 280, 100],  # 20 from the right
            [150, 50, 279, 199],
        ]
    )
    assert is_box_near_crop_edge(boxes, crop, image_hw).tolist() == [
        True,
        False,
        False,
        True,
        False,
    ]


def test_nms_keeps_the_higher_score_and_sorts_by_it() -> None:
    # boxes of 19 x 19 and 18 x 19 overlap by 18/19 = 0.947
    duplicates = mask_set(box(0, 0, 20, 20), box(0, 0, 19, 20), box(25, 20, 40, 30))
    assert (
        suppress_duplicates(duplicates, duplicates.iou, 0.95).iou.tolist()
        == duplicates.iou[::-1].tolist()
    )
    assert suppress_duplicates(duplicates, duplicates.iou, 0.94).rles == (
        duplicates.rles[2],
        duplicates.rles[1],
    )


def test_nms_after_cleaning_prefers_the_unchanged_mask() -> None:
    whole = box(5, 5, 20, 20)
    holed, speckled = whole.copy(), whole | box(35, 25, 36, 26)
    holed[10, 10] = False
    kept = postprocess_small_regions(mask_set(holed, speckled, whole), 2, 0.7)
    assert [decode(rle).sum() for rle in kept.rles] == [15 * 15]
    assert kept.iou[0] == np.float32(0.9)
    single = postprocess_small_regions(mask_set(speckled), 2, 0.7)
    assert single.boxes_xyxy.tolist() == [[5, 5, 19, 19]]


def test_filters_of_no_masks_return_no_masks() -> None:
    empty = MaskSet.cat([])
    assert suppress_duplicates(empty, empty.iou, 0.7).records() == []
    assert postprocess_small_regions(empty, 9, 0.7).records() == []
